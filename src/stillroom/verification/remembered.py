"""What a machine remembers of a publisher: time that has passed, releases seen, everything ever revoked.

It is stored outside every package, so that replacing a package wipes nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path

from stillroom.core import files
from stillroom.core.errors import VerificationFailed
from stillroom.verification.closed import parse, read_bytes
from stillroom.verification.documents import Memory, Pin, Revocation

TOLERANCE = datetime.timedelta(minutes=5)
"""Clocks may differ by this much."""


def state_folder() -> Path:
    """Where this user's machine keeps what it remembers. The environment cannot move it; see ``switch.places``."""
    from stillroom.switch.places import Places

    return Places.of_user().state


OWN = ".own"
"""Suffix of the file beside a pin that says where the publisher's own repository is on this machine."""


def trust_folder() -> Path:
    """Where this user's pins are, one ``trust.json`` a publisher."""
    from stillroom.switch.places import Places

    return Places.of_user().config / "trust"


def remember_own(repository: Path) -> tuple[Pin, Path | None]:
    """Trust the publisher of a repository that was made on this machine, and remember where it is.

    Returns:
        The publisher's pin; and the file of another pin of that name where there is one, which is left as it is.
    """
    data = read_bytes(repository / "trust.json")
    pin = parse(Pin, data, str(repository / "trust.json"))
    target = trust_folder() / f"{pin.publisher}.json"
    if target.is_file() and target.read_bytes() != data:
        return pin, target
    files.write_bytes(target, data)
    files.write_text(target.with_suffix(OWN), f"{repository.absolute()}\n")
    return pin, None


def own_repository(publisher: str) -> str | None:
    """The folder of a publisher's repository that was made on this machine, if it is still there.

    It vouches for nothing: what it holds has to be signed as anybody's.
    """
    try:
        folder = Path((trust_folder() / f"{publisher}{OWN}").read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError):
        return None
    return str(folder) if folder.is_absolute() and (folder / "metadata").is_dir() else None


class Remembered:
    """The memory of one publisher, held under a lock while it is used."""

    def __init__(self, folder: Path, pin: Pin, memory: Memory) -> None:
        self.folder = folder
        self.pin = pin
        self.memory = memory

    @classmethod
    @contextlib.contextmanager
    def open(cls, state: Path, pin: Pin) -> Iterator[Remembered]:
        """Read what is remembered; a machine that remembers nothing begins with its pin.

        Raises:
            VerificationFailed: The file is damaged.
        """
        from filelock import FileLock

        folder = state / "publishers" / f"{pin.publisher}-{files.digest_bytes(_first_keys(pin))[:12]}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            path = folder / "memory.json"
            # What is no file in its place is damage, and not a machine that remembers nothing.
            if os.path.lexists(path):
                memory = parse(Memory, read_bytes(path), str(path))
            else:
                memory = Memory(time_floor=pin.not_before)
            yield cls(folder, pin, memory)

    @property
    def metadata(self) -> Path:
        """Where the publisher's metadata is kept."""
        return self.folder / "metadata"

    def require_time(self, now: datetime.datetime, issued: datetime.datetime | None) -> None:
        """Refuse a clock that shows a time which is known to have passed.

        Raises:
            VerificationFailed: Says both times.
        """
        floor = max(self.memory.time_floor, self.pin.not_before, issued or self.pin.not_before)
        if now + TOLERANCE < floor:
            raise VerificationFailed(
                f"The clock shows {now:%Y-%m-%d %H:%M} UTC, but {floor:%Y-%m-%d %H:%M} UTC has passed: it was set back.",
                f"Set the clock. If it is right, and was wrong before, remove {self.folder}.",
            )

    def require_sequence(self, name: str, sequence: int, published: dict[str, int]) -> None:
        """Refuse a release older than the highest that was verified here, or than the least that may run.

        Raises:
            VerificationFailed: Says which rule.
        """
        seen = self.memory.sequences.get(name, 0)
        if sequence < seen:
            raise VerificationFailed(
                f"{name}: release {sequence} is older than release {seen}, the highest release seen on this machine.",
                "Use the newer one.",
            )
        for least, whose in (
            (self.pin.least_sequences.get(name, 0), "this application ships with"),
            (published.get(name, 0), "the publisher lets run"),
        ):
            if sequence < least:
                raise VerificationFailed(
                    f"{name}: release {sequence} is older than release {least}, the least that {whose}.",
                    "Use a newer one.",
                )

    def learn(self, revocations: tuple[Revocation, ...], reinstated: tuple[str, ...]) -> None:
        """Remember revocations for good, and what the release role took back; both before a package is evaluated."""
        known = {entry.id: entry for entry in (*self.memory.revoked, *revocations)}
        self._save(
            revoked=tuple(known[key] for key in sorted(known)),
            reinstated=tuple(sorted({*self.memory.reinstated, *reinstated})),
        )

    def active(self) -> tuple[Revocation, ...]:
        """Revocations that hold: seen at any time, and not taken back."""
        back = set(self.memory.reinstated)
        return tuple(entry for entry in self.memory.revoked if entry.id not in back)

    def passed(self, name: str, sequence: int, time: datetime.datetime) -> None:
        """Remember a verified release, and that this time has passed (by the minute, to spare the disk)."""
        floor = self.memory.time_floor
        self._save(
            time_floor=time if time >= floor + datetime.timedelta(minutes=1) else floor,
            sequences=self.memory.sequences | {name: max(sequence, self.memory.sequences.get(name, 0))},
        )

    def _save(self, **changed: object) -> None:
        memory = self.memory.model_copy(update=changed)
        if memory != self.memory:
            files.write_bytes(self.folder / "memory.json", files.canonical_json(memory.model_dump(mode="json")) + b"\n")
            self.memory = memory


def _first_keys(pin: Pin) -> bytes:
    """What tells publishers of one name apart: their first root's keys."""
    signed = pin.root.get("signed")
    keys = signed.get("roles") if isinstance(signed, dict) else None
    return files.canonical_json(keys)
