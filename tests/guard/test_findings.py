"""Findings carry what a third party needs, keep to their grade, and their signatures hold over exactly these bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.cli.guard import _show
from stillroom.core.errors import VerificationFailed
from stillroom.guard.findings import Finding, Rank, findings_of, read_findings, subject_digest, write_findings
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
    write_findings(path, findings_of([finding()]), {"suspect": digest}, ring, PASSPHRASE)
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
