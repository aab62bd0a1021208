"""Stillroom turns a large language model into a small one that its owner can run, prove and switch off.

The verbs of the command line are functions here, with the same meaning::

    import stillroom as st

    run = st.run("recipe.yaml")           # the whole path; again: resume
    st.plan("recipe.yaml")                # what it will take, before anything is spent
    st.report(run)                        # summary.json and report.html again
    st.answer(run, "What is a list?")     # ask the student

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillroom.core.errors import StillroomError as StillroomError
    from stillroom.pipeline import capture as capture
    from stillroom.pipeline import distill as distill
    from stillroom.pipeline import report as report
    from stillroom.pipeline import shrink as shrink
    from stillroom.recipe.reading import load_recipe as load_recipe
    from stillroom.recipe.recipe import Recipe as Recipe
    from stillroom.runs.run import Run as Run
    from stillroom.serving.ask import answer as answer
    from stillroom.signals.cache.reader import TeacherCache as TeacherCache

_WHERE = {
    "Recipe": "stillroom.recipe.recipe:Recipe",
    "Run": "stillroom.runs.run:Run",
    "StillroomError": "stillroom.core.errors:StillroomError",
    "TeacherCache": "stillroom.signals.cache.reader:TeacherCache",
    "answer": "stillroom.serving.ask:answer",
    "capture": "stillroom.pipeline:capture",
    "distill": "stillroom.pipeline:distill",
    "load_recipe": "stillroom.recipe.reading:load_recipe",
    "report": "stillroom.pipeline:report",
    "run": "stillroom.pipeline:run",
    "shrink": "stillroom.pipeline:shrink",
}
_MODULES = ("evaluate", "export", "plan")
"""Verbs that are modules too (:mod:`stillroom.verbs`)."""

__all__ = [
    "Recipe",
    "Run",
    "StillroomError",
    "TeacherCache",
    "answer",
    "capture",
    "distill",
    "evaluate",
    "export",
    "load_recipe",
    "plan",
    "report",
    "run",
    "shrink",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"stillroom.{name}")
    if name in _WHERE:
        from stillroom.verbs import resolve

        return resolve(_WHERE[name])
    raise AttributeError(f"module 'stillroom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
