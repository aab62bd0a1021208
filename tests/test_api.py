"""The Python API is what `__all__` says, equals the commands, and imports nothing heavy by itself."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from models import tiny_model

import stillroom as st
from stillroom.cli import app as cli


def test_everything_public_is_there_and_documented() -> None:
    assert sorted(st.__all__) == st.__all__
    for name in st.__all__:
        value = getattr(st, name)
        assert callable(value), name
        assert inspect.getdoc(value), name
        assert name in dir(st)


def test_every_command_on_a_recipe_or_run_is_a_verb() -> None:
    from stillroom.cli.app import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    interactive = {"chat", "serve"}
    missing = commands - interactive - set(st.__all__)
    assert {"run", "plan", "capture", "shrink", "distill", "evaluate", "export", "report"} <= commands & set(st.__all__)
    assert not missing & {"run", "plan", "capture", "shrink", "distill", "evaluate", "export", "report"}


def test_importing_it_is_light() -> None:
    script = "import sys, stillroom; print(sorted({'torch', 'transformers', 'pydantic', 'typer'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom stillroom import cli\nsys.argv = ['stillroom', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'pydantic', 'rich'} & set(sys.modules)), file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Usage" in shown.stdout
    assert shown.stderr.strip() == "[]"


def test_a_run_by_its_verbs(small_recipe: Any, tmp_path: Path) -> None:

    # The modules were imported by name, and the verbs are still there.
    recipe = st.Recipe.model_validate(small_recipe(tiny_model("llama", tmp_path / "teacher", layers=3)))
    assert st.plan(recipe, tmp_path)["teacher_parameters"] > 0
    made = st.run(recipe, tmp_path, until="capture", quiet=True)
    assert isinstance(made, st.Run)
    assert st.TeacherCache.open(made.path / "capture" / "cache").positions > 0
    assert st.shrink(made, quiet=True).stage("shrink").record is not None
    assert st.distill(made.path, quiet=True).stage("distill").record is not None
    assert st.evaluate(made, quiet=True).stage("evaluate").record is not None
    assert st.export(str(made.path), quiet=True).stage("export").record is not None
    assert st.report(made)["student"]["parameters"] > 0
    assert isinstance(st.answer(made, "What is a list?", 4), str)
    assert "recipe" in inspect.signature(st.run).parameters


def test_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cli.main()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    cli.main()
    assert os.environ["GOMP_SPINCOUNT"] == cli.SPINS
