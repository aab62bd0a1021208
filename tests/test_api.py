"""The Python API is what `__all__` says, equals the commands, and imports nothing heavy by itself."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_model

import stillroom as st
from stillroom.cli import app as cli

PUBLIC = (
    "Chat", "Recipe", "Run", "SignedNow", "StillroomError", "TeacherCache", "VerifiedPackage", "answer", "capture", "chat",
    "compare", "distill", "evaluate", "export", "load_recipe", "package", "plan", "report", "run", "serve", "shrink", "sign",
    "verify",
)  # fmt: skip
"""Names that users rely on; one that goes away breaks their programs."""
VERBS = tuple(name for name in PUBLIC if name[0].islower())


def test_every_public_name_is_there_and_documented() -> None:
    assert tuple(st.__all__) == PUBLIC
    for name in PUBLIC:
        value = getattr(st, name)
        assert callable(value), name
        assert inspect.getdoc(value), name
        assert name in dir(st)


def test_every_command_about_recipes_runs_and_packages_is_a_verb() -> None:
    from stillroom.cli.app import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    of_this_machine = {"on", "off", "status", "inspect", "revoke", "reinstate", "ladder"}
    # `init` writes a recipe, `runs` lists folders; single stages are `run(…, until=…)`, and `stillroom.corpus` is a package.
    of_commands_alone = {"init", "runs", "corpus", "baseline"}
    assert of_commands_alone <= commands
    assert commands - of_this_machine - of_commands_alone == set(VERBS) - {"answer", "load_recipe"}


def test_verbs_stay_functions_after_every_module_was_imported() -> None:
    script = (
        "import importlib, inspect, pkgutil, stillroom as st\n"
        "for module in pkgutil.walk_packages(st.__path__, 'stillroom.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        f"print([name for name in {VERBS!r} if not inspect.isfunction(getattr(st, name))])"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


HEAVY = {
    "accelerate", "cryptography", "gguf", "httpx2", "huggingface_hub", "importlib.metadata", "jinja2", "numpy", "platformdirs",
    "psutil", "rensa", "rich", "safetensors", "starlette", "tokenizers", "torch", "transformers", "tuf", "uvicorn", "xllamacpp",
    "yaml", "zstandard",
}  # fmt: skip
"""Modules that take a while to import."""


def test_importing_it_is_light() -> None:
    script = f"import sys, stillroom; print(sorted({HEAVY | {'pydantic', 'typer'}!r} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], HEAVY | {"pydantic"}),
        # typer imports pydantic, where it is installed, before it reads a command's parameters; pydantic looks for its plugins.
        (["run", "--help"], HEAVY - {"importlib.metadata"}),
        (["serve", "--help"], HEAVY - {"importlib.metadata"}),
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], heavy: set[str]) -> None:
    script = (
        f"import sys\nfrom stillroom import cli\nsys.argv = ['stillroom', *{arguments!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Usage" in shown.stdout
    assert shown.stderr.strip() == "[]"


def test_a_run_by_its_verbs(small_recipe: Any, tmp_path: Path) -> None:
    brief = {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 100}
    settings = small_recipe(tiny_model("llama", tmp_path / "teacher", layers=3), evaluate=brief)
    recipe = st.Recipe.model_validate(settings)
    assert st.plan(recipe, tmp_path)["teacher_parameters"] > 0
    made = st.run(recipe, tmp_path, until="capture", quiet=True)
    assert isinstance(made, st.Run)
    assert st.TeacherCache.open(made.path / "capture" / "cache").positions > 0
    assert st.shrink(made, quiet=True).stage("shrink").record is not None
    with pytest.raises(st.StillroomError, match="no summary"):
        _ = made.summary
    stages: list[tuple[str, str]] = []
    steps: list[int] = []
    trained = st.distill(
        made.path,
        quiet=True,
        on_stage=lambda name, values: stages.append((name, values["event"])),
        on_step=lambda name, values: steps.append(values["step"]),
    )
    assert ("distill", "begun") in stages
    assert stages[-1] == ("distill", "finished")
    assert steps
    assert {event["step"] for event in trained.metrics if event["stage"] == "distill"} == set(steps)
    model, tokenizer = trained.student()
    assert model.config.num_hidden_layers == 2
    assert tokenizer.chat_template
    assert st.evaluate(made, quiet=True).stage("evaluate").record is not None
    assert st.export(str(made.path), quiet=True).stage("export").record is not None
    assert st.report(made)["student"]["parameters"] == made.summary["student"]["parameters"] > 0
    assert "finished: corpus" in repr(made)
    assert "<td>student</td>" in made._repr_html_()
    assert st.compare(made, made)["runs"]
    assert isinstance(st.answer(made, "What is a list?", 4), str)
    with st.chat(made) as chat:
        chat.say("What is a list?", max_tokens=4)
        assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_a_recipe_as_a_dict_with_overrides(small_recipe: Any, tmp_path: Path) -> None:
    settings = small_recipe(tiny_model("llama", tmp_path / "teacher", layers=3))
    made = st.run(settings, tmp_path, until="corpus", quiet=True, overrides={"corpus.train_tokens": 1024, "seed": 5})
    assert (made.recipe.corpus.train_tokens, made.recipe.seed) == (1024, 5)
    again = st.run(made, until="corpus", quiet=True, overrides={"seed": 6})
    assert st.Run.open(again.path).recipe.seed == 6
    for key, words in {
        "distill.epoch": "Did you mean `epochs`",
        "seeed": "Did you mean",
        "name.x": "which is a value",
        "corpus.sources.3.path": "a list of 1",
    }.items():
        with pytest.raises(st.StillroomError, match=words):
            st.plan(settings, tmp_path, overrides={key: 1})


def test_a_folder_of_the_users_with_a_recipe_is_no_run(small_recipe: Any, tmp_path: Path) -> None:
    settings = small_recipe(tiny_model("llama", tmp_path / "teacher", layers=3))
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "recipe.yaml").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(st.StillroomError, match="not the folder of a run"):
        st.run(tmp_path / "project", until="corpus", quiet=True)
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["recipe.yaml"]
    made = st.run(tmp_path / "project" / "recipe.yaml", tmp_path, until="corpus", quiet=True)
    moved = made.path.rename(tmp_path / "moved")
    assert st.run(moved, until="corpus", quiet=True).path == moved


@pytest.mark.parametrize("what", [None, 3, [], b"recipe.yaml"])
def test_what_is_no_recipe_is_refused(what: Any) -> None:
    for verb in (st.run, st.plan, st.evaluate):
        with pytest.raises(st.StillroomError, match=r"The recipe is .*\n.*Give the path"):
            verb(what)


def test_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cli.main()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    cli.main()
    assert os.environ["GOMP_SPINCOUNT"] == cli.SPINS
