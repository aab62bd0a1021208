"""A stage is finished when its record exists; nothing cut off ever looks finished."""

import errno
import json
import os

import pytest

from stillroom.core import files
from stillroom.core.errors import DiskFull, NotWritable, OutOfMemory, RunError, translate
from stillroom.recipe.reading import parse_recipe
from stillroom.runs.run import Run

TEXT = "name: small\ncorpus: {sources: [{kind: python_docs}]}\nteacher: {kind: gguf, path: 'package:a/b'}\n"


@pytest.fixture
def run(tmp_path):
    return Run.create(parse_recipe(TEXT), tmp_path)


def work(run, inputs, content="text"):
    stage = run.stage("corpus")
    with stage.working(inputs, seed=3):
        files.write_text(stage.path / "out.txt", content)
        stage.notes["tokens"] = 7
    return stage


def test_a_finished_stage_holds_for_its_inputs_only(run):
    stage = work(run, {"recipe": "a"})
    assert stage.holds({"recipe": "a"})
    assert not stage.holds({"recipe": "b"})
    record = stage.record
    assert record["outputs"]["out.txt"]["sha256"] == files.digest_bytes(b"text")
    assert record["seed"] == 3
    assert record["notes"] == {"tokens": 7}
    assert record["peak_memory_bytes"] > 1 << 20
    assert record["seconds"] >= 0
    assert "begun.json" not in [path.name for path in stage.path.iterdir()]


def test_a_missing_or_cut_output_is_noticed(run):
    stage = work(run, {"recipe": "a"})
    (stage.path / "out.txt").write_text("te")
    assert not stage.holds({"recipe": "a"})
    (stage.path / "out.txt").unlink()
    assert not stage.holds({"recipe": "a"})


def test_a_stage_that_fails_has_no_record_and_keeps_its_work(run):
    stage = run.stage("corpus")
    with pytest.raises(KeyError), stage.working({"recipe": "a"}, seed=0):
        files.write_text(stage.path / "half.txt", "half")
        raise KeyError
    assert stage.record is None
    with stage.working({"recipe": "a"}, seed=0):
        assert (stage.path / "half.txt").read_text() == "half"
    assert stage.holds({"recipe": "a"})


def test_scratch_outlives_a_failure_and_is_gone_when_the_stage_is_finished(run):
    stage = run.stage("corpus")
    with pytest.raises(KeyError), stage.working({"recipe": "a"}, seed=0):
        files.write_text(stage.scratch / "half.txt", "half")
        raise KeyError
    with stage.working({"recipe": "a"}, seed=0):
        assert (stage.scratch / "half.txt").read_text() == "half"
        files.write_text(stage.path / "out.txt", "text")
    assert list(stage.record["outputs"]) == ["out.txt"]
    assert not stage.scratch.exists()
    with pytest.raises(KeyError), stage.working({"recipe": "b"}, seed=0):
        assert list(stage.scratch.iterdir()) == []
        raise KeyError


def test_work_for_other_inputs_is_removed(run):
    stage = run.stage("corpus")
    with pytest.raises(KeyError), stage.working({"recipe": "a"}, seed=0):
        files.write_text(stage.path / "half.txt", "half")
        raise KeyError
    with stage.working({"recipe": "b"}, seed=0):
        assert not (stage.path / "half.txt").exists()


def test_a_cut_record_is_no_record(run):
    stage = work(run, {"recipe": "a"})
    (stage.path / "stage.json").write_text('{"format": 1, "inp')
    assert stage.record is None
    assert not stage.holds({"recipe": "a"})


def test_output_digest_changes_with_the_output(run):
    first = work(run, {"recipe": "a"}).output_digest
    second = work(run, {"recipe": "b"}, "other").output_digest
    assert first != second
    with pytest.raises(RunError, match="the stage `shrink` is not finished"):
        _ = run.stage("shrink").output_digest


def test_events_survive_a_cut_line(run):
    run.event("distill", step=1, loss=2.0)
    with open(run.path / "events.jsonl", "a") as stream:
        stream.write('{"stage": "distill", "st')
    assert [event["step"] for event in run.events("distill")] == [1]
    run.event("distill", step=2, loss=1.0)
    run.event("distill", step=3, loss=1.0)
    assert [event["step"] for event in run.events("distill")] == [1, 2, 3]


def test_an_event_that_a_full_disk_refuses_leaves_no_half_line(run, monkeypatch):
    run.event("distill", step=1)
    real, left = os.write, [10]

    def write(handle, data):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(handle, data[: left[0]])
        left[0] -= written
        return written

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "write", write)
        run.event("distill", step=2)
    run.event("distill", step=3)
    assert (run.path / "events.jsonl").read_bytes().count(b"\n") == 2
    assert [event["step"] for event in run.events("distill")] == [1, 3]


def test_what_a_killed_process_was_writing_beside_a_runs_files_goes(run: Run) -> None:
    left, mine = run.path / ".importance.safetensors.e4006a36.partial", run.path / "mine.partial"
    left.write_text("half")
    mine.write_text("a user's")
    with run.locked():
        assert not left.exists()
        assert mine.exists()


def test_a_second_process_is_kept_out(run):
    with run.locked(), pytest.raises(RunError, match="another process is working on this run"), run.locked():
        pass


def test_opening_something_else_says_so(tmp_path):
    with pytest.raises(RunError, match="is not a run: it has no recipe"):
        Run.open(tmp_path)
    (tmp_path / "small").write_text("")
    with pytest.raises(RunError, match="is a file"):
        Run.create(parse_recipe(TEXT), tmp_path)


def test_replacing_leaves_the_old_file_when_the_body_fails(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(ZeroDivisionError), files.replacing(path) as beside:
        beside.write_text("broken")
        1 / 0  # noqa: B018
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_leftovers_of_a_kill_are_removed(tmp_path):
    (tmp_path / ".a.1234.partial").write_text("half")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".b.1.partial").mkdir()
    (tmp_path / "whole").write_text("")
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["sub", "whole"]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(28, "No space left on device", "/x/y"), DiskFull, "/x/y: the disk is full"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), DiskFull, "The disk is full"),
        (PermissionError(13, "Permission denied", "/x/y"), NotWritable, "/x/y: may not be read or written"),
        (OSError(30, "Read-only file system", "/x"), NotWritable, "/x: may not be read or written"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory, "Memory ran out"),
    ],
)
def test_low_level_failures_become_messages(error, kind, words):
    known = translate(error)
    assert type(known) is kind
    assert words in str(known)
    assert known.exit_code == 3


def test_unknown_failures_stay_what_they_are():
    assert translate(ValueError("bug")) is None
