"""The only door to loading: a package proves itself, and what is loaded is the copy that was checked. Loads nothing itself.

1  the owner's switch is off: stop before anything is parsed
2  the pinned root; the publisher's metadata, fetched or kept; the clock; everything ever revoked
3  enough valid signatures over one exact list; every file digested on its way into a private read-only copy
4  the release is not older than one that was seen; nothing of it or of its ancestors is revoked
5  the files are safe to open, the terms are kept, the quality gates are met
6  the caller loads the copy in a process without network, and looks again from time to time (`recheck`)
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import tempfile
import time as clock
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from stillroom.core.errors import VerificationFailed
from stillroom.verification.claims import Claims, read_claims
from stillroom.verification.client import Ahead, View, fetch_ahead, is_far, look, pinned_keys
from stillroom.verification.closed import parse, read_bytes
from stillroom.verification.copying import copy_verified
from stillroom.verification.documents import Pin, Policy
from stillroom.verification.envelope import Signed, key_ids, open_envelope
from stillroom.verification.lineage import Identity, index_of, reached_by
from stillroom.verification.manifest import (
    OPENSSF_SIGNATURE,
    PROVENANCE_SIGNATURE,
    SIGNATURE,
    Manifest,
    parse_statement,
    require_exact,
)
from stillroom.verification.openssf import check_bundle
from stillroom.verification.remembered import Remembered, own_repository, state_folder, trust_folder


@dataclass
class VerifiedPackage:
    """A package that proved itself. Its paths lead into a private read-only copy, which `close` removes.

    Attributes:
        folder: The private copy.
        gguf: The file to run: the smallest GGUF file of the package.
        name: The package's name.
        digest: SHA-256 over the exact list of files: what revocations and logs name.
    """

    folder: Path
    gguf: Path
    name: str
    digest: str
    manifest: Manifest
    claims: Claims
    warnings: list[str]
    signers: tuple[str, ...]
    threshold: int
    publisher: str
    view: View | None
    _again: _Question
    _private: Path
    _open: bool = field(default=True)

    def passport(self) -> dict[str, Any]:
        """What the package proves of itself, for a person or a program. See ``docs/packages.md``."""
        view = self.view
        return {
            "name": self.name,
            "sequence": self.manifest.sequence,
            "digest": self.digest,
            "publisher": self.publisher,
            "signature": {"state": "verified", "signers": list(self.signers), "threshold": self.threshold},
            "metadata": None
            if view is None
            else {
                "fetched": view.fetched,
                "issued": view.issued.isoformat(),
                "expires": view.expires.isoformat(),
            },
            **self.claims.passport(),
            "warnings": list(self.warnings),
        }

    def recheck(self, now: datetime.datetime | None = None) -> None:
        """Ask again whether the package may still run: revocations, expiry, the switch. Files are not read again.

        Raises:
            SwitchedOff: The owner's switch is off.
            VerificationFailed: It was revoked, or the publisher's metadata has expired beyond the grace.
        """
        question = self._again
        require_on()
        ahead = _ahead(question, now or _now())
        with Remembered.open(question.state, question.pin) as remembered:
            self.view, signed, _ = _trusted(question, remembered, now or _now(), ahead)
            _judge(question, remembered, parse_statement(signed.payload), self.claims, self.view, now or _now())

    def close(self) -> None:
        """Remove the private copy."""
        if self._open:
            self._open = False
            _remove(self._private)

    def __enter__(self) -> VerifiedPackage:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Question:
    """What was asked, so that it can be asked again."""

    envelope: bytes
    name: str
    pin: Pin
    state: Path
    repository: str | None


def require_on() -> None:
    """Refuse while the owner's switch is off."""
    from stillroom import switch

    switch.require_on()


def verify(
    path: str | Path,
    *,
    trust: Path | Pin | None = None,
    state: Path | None = None,
    repository: str | None = None,
    copies: Path | None = None,
    now: datetime.datetime | None = None,
) -> VerifiedPackage:
    """Let a package prove itself.

    Args:
        path: The package's folder.
        trust: A pin, its file, or a folder of pins; this user's pins without it.
        state: Where the machine's memory is stored; this user's state folder without it.
        repository: Read the publisher's metadata from here: a mirror on a medium.
        copies: Where the private copy is made; this user's cache folder without it.
        now: The time; the present without it.

    Raises:
        SwitchedOff: The owner's switch is off.
        VerificationFailed: Says which proof is missing.
        InspectionRefused: A file is not safe to open.
        TermsRefused: The terms recorded in the package forbid it.
        FloorMissed: A score is beyond a minimum that the package itself sets.
    """
    require_on()
    path = Path(path)
    if not path.is_dir():
        raise VerificationFailed(f"{path} is not a package: there is no such folder.", "Give a package's folder.")
    if not (path / SIGNATURE).is_file():
        raise VerificationFailed(
            f"{path} has no {SIGNATURE}: no one has signed it.", "Sign it (`stillroom sign`), or get a signed one."
        )
    envelope = read_bytes(path / SIGNATURE)
    pin = _choose(trust, key_ids(envelope, SIGNATURE))
    question = _Question(envelope, SIGNATURE, pin, state or state_folder(), repository)
    time = now or _now()
    # The memory is locked for moments, not while files are copied: other packages of this publisher need not wait.
    ahead = _ahead(question, time)
    with Remembered.open(question.state, pin) as remembered:
        view, signed, threshold = _trusted(question, remembered, time, ahead)
    manifest = parse_statement(signed.payload)
    require_exact(path, manifest)
    private = _private_folder(copies)
    try:
        folder = private / manifest.name
        folder.mkdir(mode=0o700)
        copy_verified(path, manifest, folder)
        claims = read_claims(folder)
        with Remembered.open(question.state, pin) as remembered:
            _check_beside(path, folder, manifest, view, pin, remembered)
            warnings = _judge(question, remembered, manifest, claims, view, time)
        gguf = claims.require_all(folder)
        known = time if view is None else min(time, _end_of_grace(claims.policy, view))
        with Remembered.open(question.state, pin) as remembered:
            remembered.passed(manifest.name, manifest.sequence, known)
    except BaseException:
        _remove(private)
        raise
    return VerifiedPackage(
        folder=folder,
        gguf=gguf,
        name=manifest.name,
        digest=manifest.root,
        manifest=manifest,
        claims=claims,
        warnings=warnings,
        signers=signed.signers,
        threshold=threshold,
        publisher=pin.publisher,
        view=view,
        _again=question,
        _private=private,
    )


def _ahead(question: _Question, now: datetime.datetime) -> Ahead | None:
    """What a repository on the network says, fetched before the memory is locked: others must not wait for a slow mirror."""
    pin, address = question.pin, question.repository or question.pin.repository or ""
    if not is_far(address):
        return None
    with Remembered.open(question.state, pin) as remembered:
        remembered.require_time(now, None)
        folder = remembered.metadata
    return fetch_ahead(pin, folder, address, Remembered.open(question.state, pin))


def _trusted(
    question: _Question, remembered: Remembered, now: datetime.datetime, ahead: Ahead | None
) -> tuple[View | None, Signed, int]:
    """Steps 2 and the first half of 3: metadata, clock, revocations learnt, signatures counted."""
    pin = question.pin
    view = None
    keys, threshold = [], 0
    if pin.repository or question.repository:
        # The clock is evaluated first by what is remembered: with a wrong clock, expired metadata would look fresh.
        remembered.require_time(now, None)
        view = look(pin, remembered.metadata, question.repository, own_repository(pin.publisher), ahead)
        keys, threshold = view.release_keys, view.threshold
        remembered.learn(view.revocations.revocations, view.reinstatements.reinstated)
    else:
        keys, threshold = pinned_keys(pin)
    remembered.require_time(now, view.issued if view else None)
    revoked = frozenset(entry.value for entry in remembered.active() if entry.kind == "key")
    return view, open_envelope(question.envelope, question.name, keys, threshold, revoked), threshold


def _judge(
    question: _Question,
    remembered: Remembered,
    manifest: Manifest,
    claims: Claims,
    view: View | None,
    now: datetime.datetime,
) -> list[str]:
    """Step 4, and the freshness that the signed policy asks for; returns warnings."""
    if (manifest.name, manifest.sequence) != (claims.policy.name, claims.policy.sequence):
        raise VerificationFailed("The signed list and policy.json name different releases.", "Get the package again.")
    identity = Identity(package=manifest.root, ancestors=claims.ancestors)
    reached = reached_by(identity, index_of(remembered.active()))
    if reached is not None:
        raise VerificationFailed(
            f"{manifest.name}, release {manifest.sequence}, is revoked by {reached}.",
            "Use another release; only the publisher's release keys can reinstate it.",
        )
    published = view.releases.least_sequences if view else {}
    remembered.require_sequence(manifest.name, manifest.sequence, published)
    if view is None:
        return [f"{question.pin.publisher} names no repository: revocations cannot reach this machine"]
    return _freshness(claims.policy, view, now)


def _freshness(policy: Policy, view: View, now: datetime.datetime) -> list[str]:
    if now < view.expires:
        return (
            [] if view.fetched else [f"offline: {view.trouble}; the kept metadata holds until {view.expires:%Y-%m-%d}"]
        )
    if view.fetched:
        raise VerificationFailed(
            f"The repository's metadata expired on {view.expires:%Y-%m-%d %H:%M} UTC: somebody holds back newer metadata, "
            "or no one renewed it.",
            "Ask the publisher to renew it (`stillroom repo refresh`), or use another mirror.",
        )
    end = _end_of_grace(policy, view)
    if now < end:
        return [f"offline: {view.trouble}; the grace of {policy.offline_grace_days} days ends on {end:%Y-%m-%d}"]
    if policy.at_expiry == "warn":
        return [f"offline beyond the grace, which ended on {end:%Y-%m-%d}: what was revoked since is not known"]
    raise VerificationFailed(
        f"Offline for too long: the publisher's metadata expired on {view.expires:%Y-%m-%d}, and the grace of "
        f"{policy.offline_grace_days} days ended on {end:%Y-%m-%d} ({view.trouble}).",
        "Connect once, or bring the repository on a medium: stillroom verify PACKAGE --repository FOLDER.",
    )


def _end_of_grace(policy: Policy, view: View) -> datetime.datetime:
    """Until when the metadata vouches for a machine's clock: beyond it, no time is remembered."""
    return view.expires + datetime.timedelta(days=policy.offline_grace_days)


def _check_beside(
    path: Path, folder: Path, manifest: Manifest, view: View | None, pin: Pin, remembered: Remembered
) -> None:
    """What is stored beside the list must agree with it: the provenance's own signatures and the OpenSSF bundle."""
    keys, threshold = (view.release_keys, view.threshold) if view else pinned_keys(pin)
    revoked = frozenset(entry.value for entry in remembered.active() if entry.kind == "key")
    signed = open_envelope(read_bytes(path / PROVENANCE_SIGNATURE), PROVENANCE_SIGNATURE, keys, threshold, revoked)
    if signed.payload != (folder / "provenance.json").read_bytes():
        raise VerificationFailed(
            f"{PROVENANCE_SIGNATURE} signs another provenance than the package's.", "Get the package again."
        )
    if manifest.openssf_key is not None:
        check_bundle(read_bytes(path / OPENSSF_SIGNATURE), manifest)
    elif (path / OPENSSF_SIGNATURE).exists():
        raise VerificationFailed(
            f"{OPENSSF_SIGNATURE} is there, but the signed list names no key for it.", "Get the package again."
        )


def _choose(trust: Path | Pin | None, signers: set[str]) -> Pin:
    """The pin whose publisher may have signed: the only one, or the one whose pinned keys have."""
    if isinstance(trust, Pin):
        pinned_keys(trust)
        return trust
    place = trust or trust_folder()
    found = [place] if place.is_file() else sorted(place.glob("*.json")) if place.is_dir() else []
    pins = [parse(Pin, read_bytes(file), str(file)) for file in found]
    if not pins:
        raise VerificationFailed(
            f"No publisher is trusted here: {place} holds no trust.json.",
            "Get it from the publisher over a way you trust, and pin it: stillroom repo trust FILE.",
        )
    for pin in pins:
        if signers & {key.keyid for key in pinned_keys(pin)[0]}:
            return pin
    # Keys may have been rotated since; with one publisher there is nothing to choose.
    if len(pins) == 1:
        return pins[0]
    raise VerificationFailed(
        f"{SIGNATURE} is signed by none of the {len(pins)} publishers that are trusted here.",
        "If its keys were rotated, name the publisher's pin: --trust FILE.",
    )


def _private_folder(copies: Path | None) -> Path:
    """A new folder that only this user may enter; copies that a killed process left are removed."""
    if copies is None:
        import platformdirs

        copies = platformdirs.user_cache_path("stillroom") / "verified"
    copies.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in copies.glob("pid*-*"):
        if left.name.startswith(f"pid{os.getpid()}-") or not left.is_dir():
            continue
        # A number means something only in the list of processes that it is from: another container or machine may share
        # this folder. The lock means the same to all of them, and ends with its process.
        lock = _lock(left)
        if lock is not None:
            _remove(left)
            (copies / f"{left.name}.lock").unlink(missing_ok=True)
            os.close(lock)
    while True:
        made = Path(tempfile.mkdtemp(prefix=f"pid{os.getpid()}-", dir=copies))
        lock = _lock(made, make=True)
        # Somebody may have looked between the two, and removed it.
        if lock is not None and made.is_dir():
            _LOCKS[made] = lock
            return made


_LOCKS: dict[Path, int] = {}
"""The locks on the copies of this process, each until its copy is removed."""
OLD_SECONDS = 7 * 86400.0
"""A copy without a lock is of Stillroom 0.1.0 (or was just begun): it is removed when nothing was done to it for so long."""


def _lock(folder: Path, make: bool = False) -> int | None:
    """The lock of a copy, where no one holds it: beside it, since the copy itself may be read only."""
    import fcntl

    path = folder.with_name(f"{folder.name}.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
    except FileNotFoundError:
        if clock.time() - folder.stat().st_mtime < OLD_SECONDS:
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    for path in _folders(folder):
        with contextlib.suppress(OSError):
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
    if (lock := _LOCKS.pop(folder, None)) is not None:
        folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)
        os.close(lock)


def _folders(folder: Path) -> Iterator[Path]:
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            yield path


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
