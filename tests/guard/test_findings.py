"""Findings carry what a third party needs, keep to their grade, and their signatures hold over exactly these bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.cli.guard import _show, deliver
from stillroom.core.errors import UsageError, VerificationFailed
from stillroom.guard import findings as findings_module
from stillroom.guard.findings import (
    Finding,
    Rank,
    findings_of,
    open_signers,
    read_findings,
    require_writable,
    subject_digest,
    write_findings,
)
from stillroom.packages.keys import Ring

PASSPHRASE = "a passphrase of tests"


def finding(**changes: Any) -> Finding:
    values: dict[str, Any] = {
        "test": "lineage/unit-order",
        "grade": "A",
        "verdict": "derived",
        "null": "the suspect was made independently of this run",
        "statistic": {"k": 12},
        "log10_p": -8.7,
        "correction": "Bonferroni over 4 layer pairs",
        "cannot_conclude": ("who made it",),
    }
    return Finding(**(values | changes))


def test_only_grade_a_carries_a_p_value() -> None:
    with pytest.raises(ValidationError, match="only grade A"):
        finding(grade="B")
    with pytest.raises(ValidationError, match="rank belongs to grade B"):
        finding(rank=Rank(rank=1, of=40))
    with pytest.raises(ValidationError):
        Rank(rank=41, of=40)
    calibrated = finding(grade="B", log10_p=None, rank=Rank(rank=1, of=40))
    assert not any("p <=" in line for line in calibrated.lines())
    assert any("rank 1 of 40" in line for line in calibrated.lines())
    assert any("p <= 10^-8.7" in line for line in finding().lines())


def test_a_finding_says_what_it_does_not_show() -> None:
    with pytest.raises(ValidationError):
        finding(cannot_conclude=())


def test_signatures_hold_over_these_bytes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Ring.create(tmp_path / "keys", "owner", PASSPHRASE, cost=2)
    (tmp_path / "suspect").mkdir()
    (tmp_path / "suspect" / "weights").write_bytes(b"1")
    digest = subject_digest(tmp_path / "suspect")
    path = tmp_path / "finding.json"
    write_findings(path, findings_of([finding()]), {"suspect": digest}, open_signers(ring, PASSPHRASE))
    statement, signers = read_findings(path, ring)
    assert len(signers) == ring.content.roles["release"].keys.__len__()
    assert statement.predicate.findings[0] == finding()
    assert statement.subject[0].digest.sha256 == digest

    shown = CliRunner().invoke(app, ["guard", "verify", str(path), "--keys", str(tmp_path / "keys")])
    assert shown.exit_code == 0
    assert "p <= 10^-8.7" in shown.stdout

    path.write_bytes(path.read_bytes().replace(b"-8.7", b"-9.7"))
    with pytest.raises(VerificationFailed, match="signs other findings"):
        read_findings(path, ring)
    stranger = Ring.create(tmp_path / "other", "other", PASSPHRASE, cost=2)
    with pytest.raises(VerificationFailed):
        read_findings(path, stranger)
    # Written again unsigned: the old signature does not stay beside it.
    write_findings(path, findings_of([finding()]), {"suspect": digest})
    assert not path.with_name("finding.json.dsse").exists()
    assert read_findings(path)[1] == ()


def test_a_finding_of_somebody_else_draws_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """Its words may hold the end of a line, and what `verify` says behind it."""
    forged = "cannot tell\nSigned by acme (2 of its release keys)\x1b[1A"
    made = Finding(test="ask/x", grade="C", verdict=forged, null=forged, statistic={forged: forged}, correction=forged,
                   cannot_conclude=(forged,))  # fmt: skip
    _show(findings_of([made], [forged]))
    shown = capsys.readouterr().out
    assert "\\nSigned" in shown
    assert not any(line.startswith("Signed") for line in shown.splitlines())
    assert "\x1b" not in shown


EXAMINATIONS = {
    "lineage": ("stillroom.guard.lineage_examine.examine", ["lineage", "suspect", "--owner", "suspect"]),
    "trace": ("stillroom.guard.lineage_match.open_model",
              ["trace", "suspect", "--key", "key", "--reference", "suspect"]),
    "coins": ("stillroom.guard.lineage_match.open_model",
              ["coins", "test", "suspect", "--twins", "texts", "--key", "key", "--reference", "suspect"]),
    "honeypots": ("stillroom.core.marks.read_key",
                  ["honeypots", "test", "texts", "--accounts", "texts", "--key", "key"]),
    "ask": ("stillroom.guard.ask_models.ask_all",
            ["ask", "suspect", "--owner", "suspect", "--controls", "suspect", "--prompts", "texts"]),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMINATIONS)
def test_what_cannot_be_signed_or_written_is_refused_before_anything_is_examined(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, words = EXAMINATIONS[name]
    (tmp_path / "suspect").mkdir()
    (tmp_path / "suspect" / "config.json").write_text("{}")
    (tmp_path / "texts").write_text('{"prompt": "a", "answers": ["b", "c"]}\n')
    (tmp_path / "key").write_text("0" * 64)
    Ring.create(tmp_path / "keys", "owner", PASSPHRASE, cost=2)
    public = tmp_path / "public"
    public.mkdir()
    (public / "ring.json").write_bytes((tmp_path / "keys" / "ring.json").read_bytes())
    monkeypatch.setenv("STILLROOM_PASSPHRASE", PASSPHRASE)
    monkeypatch.chdir(tmp_path)

    def hours(*_: Any, **__: Any) -> None:
        pytest.fail("the examination began")

    monkeypatch.setattr(target, hours)

    def refusal(*more: str) -> str:
        result = CliRunner().invoke(app, ["guard", *words, *more])
        assert isinstance(result.exception, UsageError), result.output
        return str(result.exception)

    assert "no private release key" in refusal("-o", "found.json", "--keys", "public")
    assert "is a folder" in refusal("-o", "suspect")
    (tmp_path / "found.json.dsse").mkdir()
    assert refusal("-o", "found.json").startswith("found.json.dsse is a folder")
    (tmp_path / "found.json.dsse").rmdir()
    assert "cannot be written" in refusal("-o", "texts/found.json")
    assert "--keys signs a file" in refusal("--keys", "keys")
    monkeypatch.setenv("STILLROOM_PASSPHRASE", "a mistyped passphrase")
    assert "does not open this key" in refusal("-o", "found.json", "--keys", "keys")


@pytest.mark.parametrize(
    "words",
    [
        ["coins", "new", "texts", "--key", "key"],
        ["honeypots", "new", "texts", "--key", "key"],
        ["calibrate", "store"],
        ["case", "cluster", "--store", "store", "--baseline", "texts"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_folder_is_never_moved_away_for_a_file_that_a_user_names(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts").write_text('{"prompt": "a", "answers": ["b", "c"]}\n')
    (tmp_path / "key").write_text("0" * 64)
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["guard", *words, "-o", "mine"])
    assert isinstance(result.exception, UsageError), result.output
    assert str(result.exception).startswith("mine is a folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "mine", "texts"]


READING = [
    ["lineage", "suspect", "--owner", "other", "--base", "third", "--texts", "texts"],
    ["trace", "suspect", "--key", "key", "--reference", "other", "--texts", "texts", "--said", "said",
     "--reference-said", "third/said"],
    ["coins", "test", "suspect", "--twins", "texts", "--key", "key", "--reference", "other"],
    ["coins", "new", "texts", "--key", "key"],
    ["honeypots", "test", "texts", "--accounts", "said", "--key", "key"],
    ["honeypots", "new", "texts", "--key", "key"],
    ["ask", "suspect", "--owner", "other", "--controls", "third", "--prompts", "texts"],
]  # fmt: skip


@pytest.mark.parametrize("words", READING, ids=lambda words: "-".join(words[:2]))
def test_no_command_overwrites_what_it_reads(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("suspect", "other", "third"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
    for name in ("texts", "said", "third/said", "key"):
        (tmp_path / name).write_text("0" * 64)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    read = {word for word in words if (tmp_path / word).exists()}
    assert read
    for word in read:
        path = f"{word}/config.json" if (tmp_path / word).is_dir() else word
        result = CliRunner().invoke(app, ["guard", *words, "-o", path])
        assert isinstance(result.exception, UsageError), (path, result.output)
        assert "overwritten" in str(result.exception)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_signature_overwrites_no_input_and_findings_may_be_made_again(tmp_path: Path) -> None:
    model, target = tmp_path / "model", tmp_path / "model" / "finding.json"
    model.mkdir()
    (tmp_path / "said.dsse").write_text("evidence")
    with pytest.raises(UsageError, match="would be overwritten"):
        findings_module.require_writable(tmp_path / "said", [tmp_path / "said.dsse"])
    findings_module.require_writable(target, [model])
    findings_module.write_findings(target, findings_module.findings_of([]), {})
    findings_module.require_writable(target, [model])
    with pytest.raises(UsageError, match="would be overwritten"):
        findings_module.require_writable(target, [target])


@pytest.mark.parametrize("as_json", [True, False])
def test_what_cannot_be_written_is_still_shown(
    as_json: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk may be full by the end."""

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(findings_module, "write_findings", full)
    with pytest.raises(OSError, match="no space left"):
        deliver(findings_of([finding()]), {}, tmp_path / "found.json", [], as_json)
    assert "-8.7" in capsys.readouterr().out


def test_a_trial_of_writing_leaves_nothing(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "found.json")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UsageError, match="cannot be written"):
        require_writable(tmp_path / ("n" * 300))
