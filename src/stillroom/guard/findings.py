"""What a test found, as a document that a third party can check: signed, with its null hypothesis in words.

Three grades of evidence. Only grade A carries a p-value, because only there does the randomness come from the owner's own
secret draw:

    A  exact        a p-value, under the hypothesis that the suspect was made independently of that draw
    B  calibrated   a rank among controls, or an e-value against a benign baseline; never a p-value
    C  descriptive  numbers, and no result

A finding is written as canonical in-toto JSON (``NAME.json``); ``NAME.json.dsse`` holds signatures over the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from stillroom.core import files
from stillroom.core.errors import UsageError, VerificationFailed
from stillroom.core.extras import version_of
from stillroom.core.outputs import require_apart, require_output
from stillroom.core.version import tool_version
from stillroom.verification.closed import Closed, parse_json, read_bytes, validate
from stillroom.verification.envelope import open_envelope, sign_envelope
from stillroom.verification.manifest import STATEMENT, Digest, Subject

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

    from stillroom.packages.keys import Ring

PREDICATE = "urn:stillroom:finding:1"
SIGNATURE_SUFFIX = ".dsse"
Grade = Literal["A", "B", "C"]
Text = Annotated[str, Field(min_length=1, max_length=4000)]


class Rank(Closed):
    """The suspect's rank among controls, 1 being the most alike."""

    rank: Annotated[int, Field(ge=1)]
    of: Annotated[int, Field(ge=2)]
    """Controls and the suspect together."""

    @model_validator(mode="after")
    def _possible(self) -> Rank:
        if self.rank > self.of:
            raise ValueError(f"rank {self.rank} of {self.of} is not possible")
        return self


class Finding(Closed):
    """One test and what it came to.

    Attributes:
        test: Name of the test, such as ``lineage/unit-order``.
        grade: A, B or C; see the module.
        verdict: A few words, such as ``derived``, ``same family``, ``cannot tell``, ``watch``.
        null: The hypothesis that the number is evidence against, in words.
        statistic: What was counted or computed, by name.
        log10_p: Grade A only: decimal logarithm of the p-value, corrected as ``correction`` says; at most 0.
        e: An e-value: under the null hypothesis its mean is at most 1.
        rank: Grade B: place among controls.
        correction: What was corrected for, and how; ``none`` where one test was made.
        cannot_conclude: What does not follow from this finding.
        parameters: Settings of the test.
        seeds: Seeds of everything random in the test, by name.
        commitment: Digest that the owner had published of his secret draw, where there is one.
    """

    test: Annotated[str, Field(pattern=r"^[a-z]+(/[a-z0-9-]+)*$")]
    grade: Grade
    verdict: Text
    null: Text
    statistic: dict[str, JsonValue]
    log10_p: Annotated[float, Field(le=0)] | None = None
    e: Annotated[float, Field(ge=0)] | None = None
    rank: Rank | None = None
    correction: Text
    cannot_conclude: Annotated[tuple[Text, ...], Field(min_length=1)]
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    seeds: dict[str, int | str] = Field(default_factory=dict)
    commitment: Digest | None = None

    @model_validator(mode="after")
    def _honest(self) -> Finding:
        if self.log10_p is not None and self.grade != "A":
            raise ValueError("only grade A may carry a p-value")
        if self.rank is not None and self.grade != "B":
            raise ValueError("a rank belongs to grade B")
        return self

    def lines(self) -> list[str]:
        """The finding for a reader, one fact a line."""
        found = [f"{self.test}: {self.verdict} (grade {self.grade})"]
        if self.log10_p is not None:
            found.append(f"  p <= 10^{self.log10_p:.1f}, under the hypothesis that {self.null}")
        else:
            found.append(f"  against the hypothesis that {self.null}")
        if self.rank is not None:
            found.append(f"  rank {self.rank.rank} of {self.rank.of} (suspect and controls together)")
        if self.e is not None:
            found.append(f"  e-value {self.e:.4g}")
        found += [f"  {name}: {value}" for name, value in self.statistic.items() if not isinstance(value, list | dict)]
        found.append(f"  correction: {self.correction}")
        found += [f"  does not show: {text}" for text in self.cannot_conclude]
        return found


class Findings(Closed):
    """Findings of one examination.

    Attributes:
        created: UTC, as ``2026-01-31T12:00:00Z``.
        versions: Versions of Stillroom and of the libraries that computed the numbers.
        findings: What was found.
        notes: What a reader has to know besides, such as a test that could not be made and why.
    """

    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    versions: dict[str, str]
    findings: tuple[Finding, ...]
    notes: tuple[Text, ...] = ()


class Statement(Closed):
    """The in-toto statement around findings; its subjects are the files and folders that were examined."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject, ...]
    predicateType: Literal["urn:stillroom:finding:1"]  # noqa: N815 - in-toto's word
    predicate: Findings


def findings_of(findings: list[Finding], notes: list[str] | None = None) -> Findings:
    """Findings, dated now, with the versions of what computed them."""
    versions = {"stillroom": tool_version()}
    for library in ("numpy", "scipy", "torch", "duckdb"):
        version = version_of(library)
        if version is not None:
            versions[library] = version
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Findings(created=created, versions=versions, findings=tuple(findings), notes=tuple(notes or ()))


def subject_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and digests of all files in a folder (hidden ones left out)."""
    if path.is_file():
        return files.digest_file(path)
    return files.digest_json(
        {
            file.relative_to(path).as_posix(): files.digest_file(file)
            for file in sorted(path.rglob("*"))
            if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
        }
    )


def statement(findings: Findings, subjects: dict[str, str]) -> bytes:
    """Canonical bytes of the in-toto statement.

    Args:
        findings: What was found.
        subjects: SHA-256 of everything that was examined, by what it is called.
    """
    value: dict[str, Any] = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())],
        "predicateType": PREDICATE,
        "predicate": findings.model_dump(mode="json"),
    }
    return files.canonical_json(value) + b"\n"


def open_signers(ring: Ring, passphrase: str) -> list[CryptoSigner]:
    """Every release key at hand, opened. An examination takes hours: do this first.

    Args:
        ring: The owner's keys.
        passphrase: Opens them.

    Raises:
        UsageError: The ring has no private release key here, or the passphrase does not open it.
    """
    signers = ring.signers("release", passphrase)
    if not signers:
        raise UsageError(f"{ring.folder} holds no private release key.", "Sign where the key is stored.")
    return signers


def require_writable(path: Path, inputs: Sequence[Path | None] = ()) -> None:
    """Try whether findings can be written to a file, and nothing that is examined is overwritten by them or their signature.
    An examination takes hours: do this first.

    Args:
        path: The file of the findings. Earlier findings in an examined folder may be replaced, and nothing else there.
        inputs: Files and folders that are examined or read; None is passed over.

    Raises:
        UsageError: As in :func:`stillroom.core.outputs.require_output`, or its signature's file is a folder.
    """
    if _are_findings(path):
        inputs = [given for given in inputs if given is not None and not given.is_dir()]
    require_output(path, inputs)
    files.require_no_folder(_signature_of(path))
    require_apart(_signature_of(path), inputs)


def _are_findings(path: Path) -> bool:
    try:
        read_findings(path)
    except (VerificationFailed, OSError):
        return False
    return True


def write_findings(
    path: Path, findings: Findings, subjects: dict[str, str], signers: Sequence[CryptoSigner] = ()
) -> None:
    """Write findings, and sign them where keys are given.

    Args:
        path: The file, such as ``finding.json``; the signature goes to ``finding.json.dsse`` beside it.
        findings: What was found.
        subjects: SHA-256 of everything that was examined, by name.
        signers: The owner's keys (:func:`open_signers`). Without any the file is unsigned.

    Raises:
        UsageError: It or its signature's file is a folder.
    """
    payload = statement(findings, subjects)
    signature = _signature_of(path)
    for file in (path, signature):
        files.require_no_folder(file)
    files.write_bytes(path, payload)
    # A signature over earlier findings of this name holds no longer.
    signature.unlink(missing_ok=True)
    if signers:
        sign_envelope(signature, payload, signers)


def _signature_of(path: Path) -> Path:
    """Where the signature over findings is."""
    return path.with_name(path.name + SIGNATURE_SUFFIX)


def read_findings(path: Path, ring: Ring | None = None) -> tuple[Statement, tuple[str, ...]]:
    """Read findings; with a ring, check their signatures.

    Args:
        path: The file.
        ring: Public keys are enough. At least one release key must have signed these bytes.

    Returns:
        The statement and the identifiers of the keys whose signatures hold (none without a ring).

    Raises:
        VerificationFailed: The file is not findings, or no signature of the ring holds over these bytes.
    """
    data = read_bytes(path)
    signers: tuple[str, ...] = ()
    if ring is not None:
        signature = _signature_of(path)
        keys = [ring.public_key(name) for name in ring.names("release")]
        signed = open_envelope(read_bytes(signature), str(signature), keys, 1, frozenset())
        if signed.payload != data:
            raise VerificationFailed(
                f"{signature} signs other findings than {path}.", "Get both files again from who wrote them."
            )
        signers = signed.signers
    return validate(Statement, parse_json(data, str(path)), str(path)), signers
