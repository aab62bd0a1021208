"""`init`, `runs`, `recipe`, `--set`, stage commands with a recipe, and an interrupt: as a user gives them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import RecipeError, RunError, UsageError
from stillroom.recipe.reading import load_recipe, parse_recipe
from stillroom.recipe.section import integer_of

RUNNER = CliRunner()


def command(*words: Any, fails: type[Exception] | None = None, answers: str | None = None) -> str:
    result = RUNNER.invoke(app, [str(word) for word in words], input=answers)
    if fails is not None:
        assert isinstance(result.exception, fails), result.output
        return str(result.exception)
    assert result.exit_code == 0, f"{result.output}\n{result.exception}"
    return result.stdout


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_models import tiny_model

    folder: Path = tiny_model("llama", tmp_path_factory.mktemp("models") / "my teacher", layers=2)
    return folder


def test_init_with_flags_writes_a_recipe_that_is_read(tmp_path: Path, teacher: Path, text: Path) -> None:
    path = tmp_path / "hand book.yaml"
    flags = ("--teacher", teacher, "--text", text, "--licence", "PSF-2.0", "--size", "60%", "--own", "Tests of init")
    assert "is written" in command("init", path, *flags)
    recipe = load_recipe(path)
    assert recipe.name == "hand-book"
    assert recipe.corpus.sources[0].path == text
    assert recipe.student.target.parameters == int(0.6 * 139_584)
    assert len(recipe.terms.decisions) == 2
    assert path.read_text().count("#") > 5
    assert "exists" in command("init", path, *flags, fails=UsageError)
    assert "no mistakes" in command("recipe", "check", path)


def test_init_overwrites_nothing_that_the_recipe_names(tmp_path: Path, teacher: Path) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text("the only copy")
    flags = ("--teacher", teacher, "--text", text, "--licence", "PSF-2.0", "--size", "60%", "--own", "", "--force")
    assert "would be overwritten" in command("init", text, *flags, fails=UsageError)
    assert text.read_text() == "the only copy"


def test_init_asks_five_questions(tmp_path: Path, teacher: Path, text: Path) -> None:
    path = tmp_path / "asked.yaml"
    said = command("init", path, answers=f"{teacher}\n{text}\n\n60K\n\n")
    assert said.count(":") >= 5
    recipe = load_recipe(path)
    assert recipe.student.target.parameters == 60_000
    assert not recipe.terms.decisions


def test_init_refuses_a_share_of_what_is_not_here(tmp_path: Path) -> None:
    flags = ("--teacher", "owner/model", "--text", "docs", "--licence", "MIT", "--own", "")
    assert "such as 60M" in command("init", tmp_path / "a.yaml", *flags, "--size", "0.5", fails=UsageError)
    command("init", tmp_path / "a.yaml", *flags, "--size", "60M")
    assert "neither a share" in command("init", tmp_path / "b.yaml", *flags, "--size", "half", fails=UsageError)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("rows.csv", "jsonl"),
        ("rows.JSON", "jsonl"),
        ("rows.jsonl.gz", "jsonl"),
        ("data/*.jsonl.zst", "jsonl"),
        ("p.parquet", "parquet"),
        ("b.md.gz", "text"),
    ],
)
def test_init_names_the_kind_that_reads_the_file(text: str, kind: str, tmp_path: Path) -> None:
    flags = ("--teacher", "owner/model", "--licence", "MIT", "--own", "", "--size", "60M")
    command("init", tmp_path / "a.yaml", "--text", tmp_path / text, *flags)
    assert load_recipe(tmp_path / "a.yaml").corpus.sources[0].kind == kind


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.tar.gz", "a.zip", "a.txt.gz.zst", "a.jsonl.bz2"])
def test_init_refuses_what_no_source_reads(name: str, tmp_path: Path) -> None:
    flags = ("--teacher", "owner/model", "--licence", "MIT", "--own", "", "--size", "60M")
    assert "unpacked" in command("init", tmp_path / "a.yaml", "--text", tmp_path / name, *flags, fails=UsageError)
    assert not (tmp_path / "a.yaml").exists()


@pytest.mark.parametrize(("name", "kind"), [("a.JSONL.gz", "jsonl"), ("b/a.parquet", "parquet"), ("a.md", "text")])
def test_init_looks_into_a_folder(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl" / name).parent.mkdir(parents=True)
    (tmp_path / "texts.jsonl" / name).touch()
    flags = ("--teacher", "owner/model", "--licence", "MIT", "--own", "", "--size", "60M")
    command("init", tmp_path / "a.yaml", "--text", tmp_path / "texts.jsonl", *flags)
    assert load_recipe(tmp_path / "a.yaml").corpus.sources[0].kind == kind


def test_init_names_what_its_kind_leaves_out(tmp_path: Path) -> None:
    texts = tmp_path / "mixed"
    texts.mkdir()
    for name in ("a.md", "b.md", "chats.jsonl"):
        (texts / name).write_text("words")
    flags = ("--teacher", "owner/model", "--licence", "MIT", "--own", "", "--size", "60M", "--text", texts)
    said = command("init", tmp_path / "a.yaml", *flags)
    assert f"{texts}: `kind: text` took 2 of 3 files; passed over 1 .jsonl; " in said
    (texts / "chats.jsonl").unlink()
    assert "passed over" not in command("init", tmp_path / "b.yaml", *flags)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_init_touches_no_folder(force: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("words")
    flags = ("--teacher", "owner/model", "--licence", "MIT", "--own", "", "--size", "60M", "--text", "docs")
    assert "mine is a folder" in command("init", tmp_path / "mine", *flags, *force, fails=UsageError)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "work.txt"]


def test_only_without_a_name_is_refused(tmp_path: Path) -> None:
    assert "names no metric" in command("evaluate", tmp_path, "--only", " , ", fails=UsageError)


def test_runs_are_listed(tiny_run: Path, tmp_path: Path) -> None:
    said = command("runs", tiny_run.parent)
    assert f"{tiny_run}: not finished: evaluate is next" in said
    (entry,) = [
        entry for entry in json.loads(command("runs", tiny_run.parent, "--json")) if entry["path"] == str(tiny_run)
    ]
    assert entry["bytes"] > 100_000
    assert json.loads(command("runs", tiny_run, "--json")) == [entry]
    assert "no such folder" in command("runs", tiny_run / "nowhere", fails=UsageError)
    (tmp_path / "recipe.yaml").write_bytes((tiny_run / "recipe.yaml").read_bytes())
    assert "no runs" in command("runs", tmp_path), "a recipe of the user's is no run"


def test_inspect_says_what_a_run_and_its_files_are(tiny_run: Path, tiny_gguf: Path) -> None:
    said = command("inspect", tiny_run)
    assert "a run of Stillroom; finished: corpus, capture, shrink, distill, export" in said
    assert "GGUF file, llama" in said
    assert "safe to open" in said
    assert json.loads(command("inspect", tiny_run, "--json"))["safe"] is True
    alone = json.loads(command("inspect", tiny_gguf, "--json"))
    folder = json.loads(command("inspect", tiny_run / "distill" / "model", "--json"))
    assert alone["model"]["parameters"] == folder["model"]["parameters"] > 10_000
    assert alone["model"]["context"] == folder["model"]["context"] == 2048
    assert alone["model"]["chat_template"] is True
    assert alone["safe"] is True


def test_the_schema_takes_recipes_and_refuses_unknown_keys() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(command("recipe", "schema"))
    good = {
        "name": "x",
        "corpus": {"sources": [{"kind": "python_docs"}], "train_tokens": "60M"},
        "teacher": {"kind": "huggingface", "name": "a/b"},
    }
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, "surprise": 1}, schema)


def test_set_changes_a_key_and_refuses_what_is_none(tiny_run: Path) -> None:
    assert "not KEY=VALUE" in command("plan", tiny_run, "--set", "distill.epochs", fails=UsageError)
    assert "is not a key" in command("plan", tiny_run, "--set", "distill.epoch=2", fails=RecipeError)
    plan = json.loads(command("plan", tiny_run, "--set", "distill.epochs=8", "--json"))
    assert plan["steps"] >= 8


def test_a_stage_that_was_done_prints_no_seconds(tiny_run: Path) -> None:
    said = command("export", tiny_run, "--quiet")
    assert "done before" in said
    assert " s," not in said
    assert "no stage `baseline`" in command("baseline", tiny_run, fails=RunError)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("60M", 60_000_000),
        ("50MB", 50_000_000),
        ("1e6", 1_000_000),
        ("2GiB", 2 << 30),
        ("1.5k", 1500),
        ("60_000", 60_000),
        ("1.5", None),
        ("60 Mio", None),
        ("50B", None),
        ("-3K", None),
    ],
)
def test_sizes(text: str, number: int | None) -> None:
    assert integer_of(text) == number


def test_all_mistakes_at_once_in_peoples_words() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(
            "name: my hand book\n"
            "corpus:\n  sources: [{kind: python_docs}]\n  train_tokens: many\n"
            "teacher: models/m\n"
            "export: {gguf: Q8_0}\n"
            "distill: {batch_size: 8}\n",
            "r.yaml",
        )
    said = str(caught.value)
    for words in (
        "line 7: `distill.batch_size` is not a key of this section. `batch_tokens` is the batch in tokens",
        "line 1: `name`: found 'my hand book'.",
        "such as `my-handbook`",
        "line 4: `corpus.train_tokens`: found 'many'.",
        "Write an integer, such as 60000, 60K, 1e6 or 2GiB.",
        "line 5: `teacher`: found 'models/m'.",
        "{kind: huggingface, name: models/m}",
        "Write a list: [Q8_0].",
    ):
        assert words in said, said


def test_ctrl_c_says_where_it_stopped_and_that_the_same_command_goes_on(
    tmp_path: Path, teacher: Path, small_recipe: Any
) -> None:
    settings = small_recipe(teacher) | {"baseline": False, "student": {"kind": "shrink", "layers": 1}}
    settings["distill"] = settings["distill"] | {"epochs": 4000}
    recipe = tmp_path / "long.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    words = [sys.executable, "-m", "stillroom", "distill", str(recipe), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def listen() -> None:
        # A shell lets what it starts in the background ignore interrupts, and a child inherits that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        preexec_fn=listen,
        args=words,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    ) as process:
        events = tmp_path / "runs" / "small" / "events.jsonl"
        for _ in range(3000):
            if events.is_file() and '"step": ' in events.read_text():
                break
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Stopped at step " in said
    assert "of the stage `distill`" in said
    assert "The same command goes on." in said
    assert "Traceback" not in said


def test_a_file_that_was_chosen_answers_the_recipes_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from types import SimpleNamespace

    from stillroom.cli.app import _show_run
    from stillroom.recipe.export import ChatConfig, ExportConfig

    monkeypatch.setattr("stillroom.reporting.terminal.print_table", lambda _summary: None)
    monkeypatch.setattr("stillroom.serving.ask.answer", lambda _path, prompt, _tokens: f"answered {prompt}")
    for export, asked in (({"gguf": [], "choose": {"file_bytes": 9}}, True), ({"gguf": []}, False)):
        recipe = SimpleNamespace(chat=ChatConfig(prompt="Why?"), export=ExportConfig.model_validate(export))
        _show_run(SimpleNamespace(path=tmp_path, summary={}, recipe=recipe), False)
        assert ("answered Why?" in capsys.readouterr().out) is asked
