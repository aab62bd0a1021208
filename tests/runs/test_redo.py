"""What changed is done again and said why; what was there is kept; what is damaged is noticed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import tiny_model

from stillroom import pipeline
from stillroom.core import files
from stillroom.core.errors import CorpusError, RunError, StillroomError
from stillroom.corpus.inputs import find_files
from stillroom.recipe.reading import recipe_of
from stillroom.runs.known import Known, difference, made_from
from stillroom.runs.run import Run
from stillroom.runs.stages import stages_of
from stillroom.training import extension
from tests.conftest import OWN

Go = Callable[..., tuple[Run, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A project's folder: teacher, text, recipe, and its run as far as `shrink`."""
    folder = tmp_path_factory.mktemp("project")
    tiny_model("llama", folder / "teacher", layers=2)
    shutil.copytree(text, folder / "text")
    settings: dict[str, Any] = {
        "name": "tiny",
        "compute": {"device": "cpu", "threads": 1},
        "corpus": {"sources": [{"kind": "text", "path": "text", "licence": "PSF-2.0"}], "sequence_length": 64},
        "teacher": {"kind": "huggingface", "name": "teacher"},
        "student": {"kind": "shrink", "layers": 1},
        "distill": {"batch_tokens": 512, "precision": "float32"},
        "chat": {"prompt": None},
        "terms": {"decisions": [OWN | {"subject": "teacher"}, OWN | {"subject": "student"}]},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for stage in ("capture", "shrink"):
        pipeline.run(folder / "tiny.yaml", until=stage, quiet=True)
    return folder


@pytest.fixture
def project(made: Path) -> Any:
    """The project as it was, in the same place."""
    kept = made.with_name(f"{made.name}.kept")
    shutil.copytree(made, kept)
    yield made
    shutil.rmtree(made)
    kept.rename(made)


def go(project: Path, *until: str) -> tuple[Run, str]:
    """The corpus, the capture and the pruned student; what was done, and what was said."""
    said = io.StringIO()
    run = pipeline.opened(project / "tiny.yaml")
    with contextlib.redirect_stderr(said):
        for stage in until or ("capture", "shrink"):
            pipeline.run(run, until=stage, quiet=True)
    return run, said.getvalue()


@pytest.fixture(autouse=True)
def _talk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quiet runs draw nothing; what they would say is said here."""
    from stillroom.core.progress import Progress, say

    monkeypatch.setattr(Progress, "say", lambda _self, text: say(text))


def change(project: Path, key: str, value: Any) -> None:
    tree = yaml.safe_load((project / "tiny.yaml").read_text())
    at = tree
    *above, last = key.split(".")
    for part in above:
        at = at.setdefault(part, {})
    at[last] = value
    (project / "tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def test_a_run_lies_beside_its_recipe_and_nothing_is_done_twice(project: Path) -> None:
    run, said = go(project)
    assert run.path == project / "runs" / "tiny"
    assert run.done == []
    assert said.count("done before") == 4
    assert not (run.path / "history").exists()


def test_files_added_changed_and_gone_are_noticed_and_counted(project: Path) -> None:
    text = project / "text"
    for number in range(3):
        (text / f"new-{number}.txt").write_text(f"Words that were not there, number {number}. " * 8)
    (text / "01.txt").write_text("Quite another text than before. " * 8)
    (text / "02.txt").unlink()
    run, said = go(project)
    assert "corpus: 3 files added, 1 changed, 1 gone: reading again" in said
    assert "the result of `corpus` changed: capturing what is new" in said
    assert run.done == ["corpus", "capture", "shrink"]
    record = run.stage("capture").record
    assert record is not None
    assert record["notes"]["reused"] > 0, "what is still there is not captured again"
    # Text that is gone is gone from the history of the corpus too.
    assert "gone from the corpus" in said
    assert sorted(path.name for path in (run.path / "history" / "corpus-1").iterdir()) == ["ledger.json", "stage.json"]


def test_a_file_that_is_only_touched_is_no_change(project: Path) -> None:
    for path in (project / "text").iterdir():
        os.utime(path, ns=(time.time_ns(), time.time_ns()))
    assert go(project)[0].done == []


def test_a_source_that_is_gone_is_refused_and_nothing_is_lost(project: Path) -> None:
    (project / "text").rename(project / "elsewhere")
    with pytest.raises(CorpusError, match="text: no such file or folder"):
        go(project)
    (project / "elsewhere").rename(project / "text")
    assert go(project)[0].done == []


def test_another_teacher_in_the_same_folder_is_noticed(project: Path) -> None:
    path = project / "teacher" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    run, said = go(project)
    assert "corpus: the teacher's files changed: reading again" in said
    assert run.done == ["corpus", "capture", "shrink"]


def test_the_key_that_changed_is_named_and_the_result_kept(project: Path) -> None:
    before = (project / "runs/tiny/shrink/stage.json").read_bytes()
    change(project, "student.vocabulary", {"keep": "all"})
    run, said = go(project)
    assert run.done == ["shrink"]
    assert "shrink: `student.vocabulary.keep` changed from" in said
    assert "the previous result is kept in history/shrink-1" in said
    assert (run.path / "history" / "shrink-1" / "stage.json").read_bytes() == before
    assert (run.path / "history" / "shrink-1" / "model" / "model.safetensors").is_file()


def test_what_changed_in_a_list_of_sections_is_named(project: Path) -> None:
    change(project, "corpus.sources", [{"kind": "text", "path": "text", "licence": "PSF-2.0", "limit": 999}])
    _, said = go(project)
    assert "corpus: `corpus.sources.0.limit` changed from nothing to 999" in said


def test_three_results_are_kept(project: Path) -> None:
    for number in range(5):
        change(project, "seed", number + 1)
        go(project, "corpus")
    kept = sorted(path.name for path in (project / "runs/tiny/history").iterdir())
    assert kept == ["corpus-3", "corpus-4", "corpus-5"]


@pytest.mark.parametrize("kind", ["byte", "cut", "empty", "folder", "gone"])
def test_a_damaged_output_is_made_again(project: Path, kind: str) -> None:
    path = project / "runs/tiny/shrink/model/model.safetensors"
    data = path.read_bytes()
    path.unlink()
    match kind:
        case "byte":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            path.write_bytes(data[:-9])
        case "empty":
            path.write_bytes(b"")
        case "folder":
            path.mkdir()
    run, said = go(project)
    assert run.done == ["shrink"]
    assert "shrink: model/model.safetensors" in said
    assert path.read_bytes() == data


@pytest.mark.parametrize("outside", [False, True])
def test_a_damaged_shard_is_named_and_captured_again(project: Path, outside: bool) -> None:
    folder = project / ("shared-cache" if outside else "runs/tiny/capture/cache")
    if outside:
        change(project, "capture", {"path": "shared-cache"})
        go(project)
    shard = next(folder.glob("shard-*.safetensors"))
    data = shard.read_bytes()
    shard.write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])
    run, said = go(project)
    assert "capture" in run.done
    assert shard.name in said
    assert go(project)[0].done == []


def test_a_kill_while_a_result_is_moved_aside_loses_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was captured does not move; the rest follows to where its beginning went."""
    run = Run.open(project / "runs/tiny")
    cache = {file.name: file.stat().st_ino for file in (run.path / "capture/cache").iterdir()}
    others = sorted(entry.name for entry in (run.path / "capture").iterdir() if entry.name != "cache")
    assert len(others) > 1
    rename = os.rename
    for allowed in range(len(others)):
        calls = iter(range(allowed))

        def killed(source: Any, target: Any, calls: Iterator[int] = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            rename(source, target)

        monkeypatch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run.stage("capture").set_aside(("cache",))
        monkeypatch.undo()
        assert {file.name: file.stat().st_ino for file in (run.path / "capture/cache").iterdir()} == cache
        if allowed == 1:
            break
    assert run.stage("capture").set_aside(("cache",)) == run.path / "history/capture-1"
    assert sorted(entry.name for entry in (run.path / "history/capture-1").iterdir()) == others
    assert {file.name: file.stat().st_ino for file in (run.path / "capture/cache").iterdir()} == cache
    assert run.stage("capture").set_aside(("cache",)) is None


def test_withdrawn_text_is_gone_also_after_a_kill(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(project / "runs/tiny")
    stage = run.stage("corpus")
    ledger = files.read_json(stage.path / "ledger.json")
    ledger["near_duplicates"]["heldout"]["named"] = [
        {"similarity": 1.0, "document": ["a", "withdrawn words"], "train": []}
    ]
    files.write_json(stage.path / "ledger.json", ledger)
    rename, calls = os.rename, iter(range(10**6))

    def killed(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(source).name == "stage.json" and next(calls) == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        stage.set_aside()
    kept = list((run.path / "history").rglob("*"))
    assert any(path.name == "ledger.json" for path in kept)
    assert not [path for path in kept if path.suffix == ".safetensors" or path.name == "tokenizer"]
    assert not any("withdrawn words" in path.read_text() for path in kept if path.suffix == ".json")


def test_a_training_with_other_settings_is_not_told_as_one_that_went_on(project: Path) -> None:
    def begun(settings: dict[str, Any]) -> bool:
        with pytest.raises(KeyboardInterrupt), run.stage("distill").working(settings, 0):
            raise KeyboardInterrupt
        events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
        return bool([event for event in events if event["stage"] == "distill"][-1]["resumed"])

    run = Run.open(project / "runs/tiny")
    assert [begun({"rate": "a"}), begun({"rate": "a"}), begun({"rate": "b"})] == [False, True, False]


@pytest.mark.parametrize("name", ["corpus/stage.json", "recipe.yaml", "events.jsonl", ".known.json", ".recipe.json"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe{", None])
def test_a_damaged_file_of_the_run_itself_is_no_dead_end(project: Path, name: str, data: bytes | None) -> None:
    path = project / "runs/tiny" / name
    path.unlink()
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)
    run, _ = go(project)
    assert not path.is_dir()
    assert run.done == (["corpus"] if name == "corpus/stage.json" else [])


def test_a_record_with_one_changed_byte_is_no_record(project: Path) -> None:
    stage = Run.open(project / "runs/tiny").stage("shrink")
    path = stage.path / "stage.json"
    whole = path.read_bytes()
    assert stage.record is not None
    for at in range(0, len(whole), 37):
        path.write_bytes(bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]))
        found = stage.record
        assert found is None, f"byte {at} changed, and the record was taken"


def test_the_run_opens_without_its_recipe_and_says_so(project: Path) -> None:
    (project / "runs/tiny/recipe.yaml").write_text("name: [")
    run = Run.open(project / "runs/tiny")
    assert "this run's own copy of the recipe is used" in run.notices[0]
    assert Run.open(project / "runs/tiny").notices == []


def test_a_changed_recipe_file_is_named_where_the_folder_is_given(project: Path) -> None:
    change(project, "distill.epochs", 3)
    (notice,) = Run.open(project / "runs/tiny").notices
    assert "tiny.yaml was changed since" in notice
    assert Run.open(project / "runs/tiny").recipe.distill.epochs == 1
    assert pipeline.opened(project / "tiny.yaml").recipe.distill.epochs == 3


def test_a_run_in_the_working_directory_is_found_and_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.move(project / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    run, said = go(project)
    assert run.path == Path("runs/tiny")
    assert run.done == []
    assert "a run of this name is in runs/tiny: it goes on there" in said
    # One that another recipe made is not meant.
    shutil.copytree(project, tmp_path / "other", ignore=shutil.ignore_patterns("runs"))
    assert pipeline.opened(tmp_path / "other" / "tiny.yaml").path == tmp_path / "other" / "runs" / "tiny"
    assert pipeline.opened(project / "tiny.yaml", tmp_path / "named").path == tmp_path / "named" / "tiny"


def test_a_wrong_stage_lists_the_stages(project: Path) -> None:
    with pytest.raises(RunError, match=r"no stage `foo`.\nIts stages: corpus, capture, shrink"):
        go(project, "foo")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ({}, {}, ""),
        ({"a": "1"}, {"a": "1", "b": "1"}, "1 file added"),
        ({"a": "1", "b": "1", "c": "1"}, {"a": "2"}, "1 file changed, 2 gone"),
        ({"a": "1"}, {"a": "1", "b": "1", "c": "1"}, "2 files added"),
    ],
)
def test_differences_in_words(before: Mapping[str, str], after: Mapping[str, str], words: str) -> None:
    assert difference(dict(before), dict(after)) == words


def test_device_profiles_of_ones_own_count_by_content(tmp_path: Path, small_recipe: Any) -> None:
    own = tmp_path / "own.yaml"
    target = {"device": "tiny", "profiles": str(own)}
    recipe = recipe_of(
        small_recipe("teacher", student={"kind": "shrink", "target": target}, export={"gguf": [], "choose": target})
    )
    found = []
    for words in ("tiny: {memory_bytes: 1}", "tiny: {memory_bytes: 20}"):
        own.write_text(words)
        found.append([made_from(recipe, stage, Known.open(tmp_path)) for stage in ("shrink", "export", "distill")])
    (shrink, export, distill), after = found
    assert list(shrink) == list(export) == [str(own)]
    assert distill == after[2] == {}
    assert shrink != after[0]
    assert export != after[1]


@pytest.mark.parametrize(
    "path",
    ["texts", "texts/*.md", "texts/**/*.MD", "texts/*", "*/b.md", "texts/.x/*.md", "texts/[ab].md", "texts/a.md"],
)
def test_every_file_that_the_corpus_reads_is_digested(path: str, tmp_path: Path, small_recipe: Any) -> None:
    """Whatever its case, packed, hidden, or deep: a change of one that was not would leave the corpus as it was."""
    for name in ("a.md", "b.md.gz", "NOTES.MD", "deep/er/c.txt", ".x/n.md", ".hidden.md", ".git/HEAD", "d.bin"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text("x")
    source = {"kind": "text", "path": str(tmp_path / path)}
    recipe = recipe_of(small_recipe("teacher", corpus={"sources": [source], "sequence_length": 64}))
    read = {str(file) for file in find_files(tmp_path / path, recipe.corpus.sources[0].pattern)}
    digested = set(made_from(recipe, "corpus", Known.open(tmp_path)))
    assert read
    assert read <= digested
    assert not any(name.endswith("HEAD") for name in digested)


def test_known_digests_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    os.utime(path, ns=(10**18, 10**18))
    time.sleep(0.15)
    known = Known.open(tmp_path)
    first = known.digest(path)
    assert known.changed
    known.save()
    again = Known.open(tmp_path)
    assert again.digests
    assert again.digest(path) == first
    # The same size and the same time of change: what the system notes of the change itself tells.
    path.write_text("two")
    os.utime(path, ns=(10**18, 10**18))
    assert again.digest(path) != first
    (tmp_path / ".known.json").write_text(json.dumps({"digest": "0", "digests": {}, "made_from": {}}))
    assert Known.open(tmp_path).digests == {}


def test_errors_of_damage_have_a_message(project: Path) -> None:
    """With neither recipe nor copy there is no run, and that is said."""
    for name in ("recipe.yaml", ".recipe.json"):
        (project / "runs/tiny" / name).write_bytes(b"\xff\xff")
    with pytest.raises(StillroomError, match="Or run the recipe itself again"):
        Run.open(project / "runs/tiny")


def test_a_longer_training_goes_on_from_the_shorter_one_and_is_the_same_to_the_bit(project: Path) -> None:
    change(project, "distill.schedule", "wsd")
    change(project, "distill.learning_rate", 1e-3)
    change(project, "distill.warmup_share", 0.0)
    change(project, "distill.epochs", 2)
    run, _ = go(project, "distill")
    short = run.stage("distill").record
    assert short is not None
    fall = json.loads((run.path / "distill" / "stable" / "begin.json").read_text())["step"]
    assert 0 < fall < short["notes"]["steps"]

    change(project, "distill.epochs", 4)
    run, said = go(project, "distill")
    assert f"goes on from step {fall} of the shorter training in history/distill-1" in said
    longer = run.stage("distill").record
    assert longer is not None
    assert longer["notes"]["extends"] == {"result": "history/distill-1", "from_step": fall}
    extended = (run.path / "distill" / "model" / "model.safetensors").read_bytes()
    steps = [event["step"] for event in run.metrics if event["stage"] == "distill" and "loss" in event]
    assert steps == [*range(1, short["notes"]["steps"] + 1), *range(fall + 1, longer["notes"]["steps"] + 1)]

    shutil.rmtree(run.path / "distill")
    shutil.rmtree(run.path / "history")
    run, said = go(project, "distill")
    assert "goes on from step" not in said
    assert (run.path / "distill" / "model" / "model.safetensors").read_bytes() == extended

    # What differs in more than its length, or is shorter, begins anew.
    change(project, "distill.epochs", 3)
    _, said = go(project, "distill")
    assert "goes on from step" not in said
    change(project, "distill.epochs", 5)
    change(project, "distill.learning_rate", 2e-3)
    _, said = go(project, "distill")
    assert "goes on from step" not in said


def test_a_longer_training_whose_beginning_is_damaged_begins_anew(project: Path) -> None:
    change(project, "distill.schedule", "wsd")
    change(project, "distill.learning_rate", 1e-3)
    run, _ = go(project, "distill")
    change(project, "distill.epochs", 2)
    kept = run.path / "distill" / "stable" / "state.safetensors"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run, said = go(project, "distill")
    assert "goes on from step" not in said
    record = run.stage("distill").record
    assert record is not None
    assert "extends" not in record["notes"]


def test_what_a_kill_left_of_a_beginning_is_not_taken_for_one(project: Path) -> None:
    change(project, "distill.schedule", "wsd")
    run, _ = go(project, "corpus")
    stage = run.stage("distill")
    stage.scratch.mkdir(parents=True)
    # The file came, and the checkpoint that it belongs to did not.
    begin = extension.Begin(step=7, rows=3, warmup=2, best_step=4, came_from="history/distill-1")
    (stage.scratch / extension.BEGIN).write_text(json.dumps(vars(begin)))
    assert extension.extend(run, stage, {}, {"distill": {"schedule": "wsd"}}) is None
    assert extension.Begin.load(stage.scratch) is None


@pytest.fixture
def moved(project: Path, tmp_path: Path) -> Any:
    """The project, moved with its recipe, text, teacher and run to another folder."""
    there = tmp_path / "elsewhere" / "project"
    there.parent.mkdir()
    project.rename(there)
    project.mkdir()
    return there


def test_a_run_that_was_moved_with_its_recipe_stays_finished(moved: Path) -> None:
    run, said = go(moved)
    assert run.path == moved / "runs" / "tiny"
    assert said.count("done before") == 4  # corpus and capture, corpus and shrink
    assert "again" not in said
    # What changes after the move is noticed as ever.
    (moved / "text" / "more.txt").write_text("More text than there was before.\n" * 40)
    assert "corpus: done before" not in go(moved, "corpus")[1]


def test_a_run_that_was_moved_and_changed_is_done_again(moved: Path) -> None:
    first = next(path for path in sorted((moved / "text").rglob("*")) if path.is_file())
    first.write_text(first.read_text() + "\nOne line more.\n")
    assert "again" in go(moved, "capture")[1]


def test_another_teacher_at_another_place_is_no_move(moved: Path) -> None:
    shutil.rmtree(moved / "teacher")
    tiny_model("llama", moved / "teacher", layers=2, seed=5)
    assert "the teacher's files changed" in go(moved, "capture")[1]


def test_the_folder_of_a_moved_run_finds_what_lies_beside_it(moved: Path) -> None:
    run = Run.open(moved / "runs" / "tiny")
    assert any("moved here" in notice for notice in run.notices)
    assert run.origin == moved / "tiny.yaml"
    assert str(moved) in str(run.recipe.corpus.sources[0])
    pipeline.run(run, until="shrink", quiet=True)
    assert not Run.open(run.path).stage("shrink").damaged()


def test_a_record_of_a_move_without_its_shortcut_is_done_again(moved: Path) -> None:
    """What the files were is then not known: it is read again, never taken on trust."""
    (moved / "runs" / "tiny" / ".known.json").unlink()
    assert "again" in go(moved, "corpus")[1]


def test_merges_belong_to_the_teacher(project: Path) -> None:
    (project / "teacher" / "merges.txt").write_text("#version: 0.2\na b\n")
    _, said = go(project, "capture")
    assert "the teacher's files changed" in said
    (project / "teacher" / "merges.txt").write_text("#version: 0.2\na c\n")
    _, said = go(project, "capture")
    assert "the teacher's files changed" in said


def test_a_record_from_before_merges_counted_holds(project: Path) -> None:
    """A record of 0.1.0 does not know of them: it holds, whatever stands there."""
    from stillroom.runs.stages import STAGES, inputs_of

    run, _ = go(project, "capture")
    (project / "teacher" / "merges.txt").write_text("#version: 0.2\na b\n")
    spec = next(spec for spec in STAGES if spec.name == "capture")
    path = run.stage("capture").path / "stage.json"
    held = run.stage("capture").record
    assert held is not None
    assert inputs_of(run, spec)["teacher"] != held["inputs"]["teacher"]
    path.write_text(json.dumps({key: value for key, value in held.items() if key not in ("sections", "digest")}))
    assert inputs_of(run, spec)["teacher"] == held["inputs"]["teacher"]


def test_how_often_checkpoints_are_written_changes_no_result(project: Path) -> None:
    go(project, "distill")
    change(project, "distill.checkpoint_seconds", 5.0)
    run, said = go(project, "distill")
    assert run.done == [], said
    change(project, "distill.checkpoint_seconds", 60.0)
    assert go(project, "distill")[0].done == []
    change(project, "distill.weight_decay", 0.5)
    assert go(project, "distill")[0].done == ["distill"]


def test_a_training_that_was_stopped_goes_on_with_other_times_of_checkpoints(project: Path) -> None:
    change(project, "distill.checkpoint_seconds", 0)
    change(project, "distill.learning_rate", 1e-3)

    def stop(_stage: str, values: Mapping[str, Any]) -> None:
        if values["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.run(project / "tiny.yaml", until="distill", quiet=True, on_step=stop)
    change(project, "distill.checkpoint_seconds", 1000)
    run, said = go(project, "distill")
    assert "distill: going on" in said
    steps = [event["step"] for event in run.metrics if event["stage"] == "distill" and "loss" in event]
    assert steps.count(2) == 1, "it began at its first step"
    assert go(project, "distill")[0].done == []


def test_a_stated_licence_makes_no_new_student_and_is_in_the_file(project: Path) -> None:
    from stillroom.models.gguf_source import gguf_facts

    change(project, "export", {"gguf": ["F16"], "check_tokens": 16})
    run, _ = go(project, "export")
    assert run.stage("distill").record is not None
    change(project, "teacher.licence", "Apache-2.0")
    run, said = go(project, "export")
    assert run.done == ["capture", "export"], said
    assert "export: the teacher's licence changed: exporting again" in said
    assert gguf_facts(run.path / "export" / "tiny-F16.gguf", 0)["general.license"] == "Apache-2.0"
    assert go(project, "export")[0].done == []


def test_a_width_that_was_solved_for_no_file_is_solved_again_for_one(project: Path) -> None:
    change(project, "student", {"kind": "shrink", "target": {"parameters": 100_000, "axes": ["hidden_size"]}})
    change(project, "export", {"gguf": []})
    go(project)
    assert go(project)[0].done == []
    change(project, "export", {"gguf": ["F16"]})
    run, said = go(project)
    assert run.done == ["shrink"]
    assert "shrink: whether `export` writes a GGUF file changed: pruning again" in said
    assert go(project)[0].done == []


def test_numbers_of_an_earlier_student_are_told_for_no_other(project: Path) -> None:
    from typer.testing import CliRunner

    from stillroom.cli.app import app
    from stillroom.packages.pack import pack

    change(project, "export", {"gguf": ["F16"], "check_tokens": 16})
    change(project, "baseline", False)
    change(project, "evaluate", {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 100})
    run = pipeline.run(project / "tiny.yaml", quiet=True)
    assert "finished; " in CliRunner().invoke(app, ["runs", str(run.path)]).stdout
    pipeline.run_stage(run, "distill", overrides={"distill.weight_decay": 0.5}, quiet=True)
    listed = CliRunner().invoke(app, ["runs", str(run.path)]).stdout
    assert "not finished: export is next" in listed
    assert "KL to the teacher" not in listed
    words = "stage `export` was done with an earlier result of `distill`"
    with pytest.raises(RunError, match=words):
        pipeline.finish(Run.open(run.path))
    with pytest.raises(RunError, match=words):
        pack(Run.open(run.path))
    for stage in ("export", "evaluate"):
        pipeline.run_stage(run, stage, quiet=True)
    with pytest.raises(RunError, match="summary is of an earlier student"):
        pack(Run.open(run.path))
    pipeline.finish(Run.open(run.path))
    assert pack(Run.open(run.path)).is_dir()


def test_a_result_that_was_changed_by_hand_is_told_to_nobody(project: Path) -> None:
    from stillroom.packages.pack import pack

    change(project, "export", {"gguf": ["F16"], "check_tokens": 16})
    change(project, "baseline", False)
    change(project, "evaluate", {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 100})
    run = pipeline.run(project / "tiny.yaml", quiet=True)
    tried = 0
    for spec in stages_of(run.recipe):
        for name in (run.stage(spec.name).record or {})["outputs"]:
            path = run.stage(spec.name).path / name
            kept, times = path.read_bytes(), path.stat()
            changed = bytearray(kept)
            changed[len(kept) // 2] ^= 1
            # The same bytes in number, and the file's own times, as far as they can be set.
            path.write_bytes(changed)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            words = re.escape(f"a file of the stage `{spec.name}` is not what the stage wrote: {name} ")
            for told in (pipeline.finish, pack):
                with pytest.raises(RunError, match=words):
                    told(Run.open(run.path))
            if path.parent == run.stage(spec.name).path and path.suffix == ".json":
                path.unlink()
                with pytest.raises(RunError, match=words + "is missing"):
                    pipeline.finish(Run.open(run.path))
            path.write_bytes(kept)
            tried += 1
    assert tried > 15
    shards = [*(run.path / "capture").rglob("*.safetensors")]
    assert shards
    for shard in shards:  # what only training reads can be large, and may be deleted
        shard.unlink()
    pipeline.finish(Run.open(run.path))


def test_a_student_is_not_measured_by_the_vocabulary_of_another(project: Path) -> None:
    from stillroom.formats.ladder import ladder

    change(project, "baseline", False)
    run, _ = go(project, "distill")
    pipeline.run_stage(run, "shrink", overrides={"student.vocabulary.multiple_of": 1}, quiet=True)
    words = "stage `distill` was done with an earlier result of `shrink`"
    with pytest.raises(RunError, match=words):
        pipeline.measure_only(run.path, ["fidelity"], quiet=True)
    with pytest.raises(RunError, match=words):
        ladder(run.path, ("F16",), quiet=True)
