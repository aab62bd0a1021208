"""What a part's record says of the logs that it holds, and whether two parts hold the same requests.

A log is known by its lines, whatever its name. A part records, for each log, how many of its first lines the store holds now
and their digest, from which line on they are in this part, and digests of the log's first bytes. So a log that has grown is
read from where it ended, and parts of different stores that hold lines of one log are seen when they are merged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stillroom.core import files

PARQUET = -1
"""Stands for a whole file of Parquet in place of a number of lines."""
LENGTHS = tuple(1 << power for power in range(6, 17))
"""Of a log's first so many bytes the digest is recorded: 64 B to 64 KiB."""
SURE = 1024
"""Logs that agree in so many of their first bytes are taken for one log; after fewer, their rows are compared."""
Share = tuple[int, int]


@dataclass(frozen=True)
class Held:
    """One log in a part's record.

    Attributes:
        lines: How many of its first lines (or of its share's) the store holds with this part; :data:`PARQUET` for a file of
            rows.
        sha256: Digest of these lines, or of the file.
        after: How many of them are in other parts; None where an older version wrote the record.
        share: Which share of its bytes this is, number from 0, of how many; None for the whole of it.
        size: Bytes of the log of which it is a share.
        beginning: Digests of its first bytes, by how many.
        ended: Where the last line had no end: the lines before it, and their digest. The line may have gone on since.
        path: The file, where it is one that is being read; no record has it.
    """

    lines: int
    sha256: str
    after: int | None = None
    share: Share | None = None
    size: int = 0
    beginning: dict[int, str] = field(default_factory=dict)
    ended: tuple[int, str] | None = None
    path: Path | None = None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        made: dict[str, Any] = {"lines": self.lines, "sha256": self.sha256}
        if self.after is not None:
            made["after"] = self.after
        if self.share is not None:
            made |= {"share": list(self.share), "size": self.size}
        if self.beginning:
            made["beginning"] = {str(length): digest for length, digest in self.beginning.items()}
        if self.ended is not None:
            made["ended"] = list(self.ended)
        return made

    def known_as(self) -> Iterator[tuple[int, str]]:
        """The lines by which the log is known again, and their digest."""
        yield self.lines, name_of(self.sha256, self.share)
        if self.ended is not None:
            yield self.ended[0], name_of(self.ended[1], self.share)


def name_of(sha256: str, share: Share | None) -> str:
    """A digest of lines, and the share that they are of: two shares of one log may hold equal lines."""
    return sha256 if share is None else f"{sha256} {share[0]}/{share[1]}"


def held_by(part: Path) -> list[Held]:
    """What a part's record says of its logs, as any version wrote it."""
    found = []
    for entry in files.read_json(part / "part.json").get("read", ()):
        share, ended = entry.get("share"), entry.get("ended")
        found.append(
            Held(
                int(entry["lines"]),
                str(entry["sha256"]),
                entry.get("after"),
                (int(share[0]), int(share[1])) if share else None,
                int(entry.get("size", 0)),
                {int(length): str(digest) for length, digest in entry.get("beginning", {}).items()},
                (int(ended[0]), str(ended[1])) if ended else None,
            )
        )
    return found


def beginning_of(first: bytes) -> dict[int, str]:
    """Digests of a log's first bytes, by how many."""
    return {length: hashlib.sha256(first[:length]).hexdigest()[:32] for length in LENGTHS if length <= len(first)}


def agree(one: Held, other: Held) -> int:
    """In how many of their first bytes two logs agree, of the most that both records tell of; 0 where not in these."""
    length = max(one.beginning.keys() & other.beginning.keys(), default=0)
    return length if length and one.beginning[length] == other.beginning[length] else 0


Relation = Literal["apart", "perhaps", "same", "shares"]


def relation(one: Held, other: Held) -> Relation:
    """What two entries of different parts have to do with each other.

    Returns:
        ``same``: they hold the same lines. ``shares``: they are a share and the whole of one log, or shares that do not fit
        together. ``perhaps``: they hold common lines of one log if what follows their equal beginnings is equal too, which
        the rows tell.
    """
    if one.lines and (one.lines, one.sha256, one.share) == (other.lines, other.sha256, other.share):
        return "same"
    common = agree(one, other)
    if not common:
        return "apart"
    if one.share is not None or other.share is not None:
        return "apart" if common < SURE or fit(one, other) else "shares"
    if one.after is None or other.after is None:
        return "apart"
    return "perhaps" if max(one.after, other.after) < min(one.lines, other.lines) else "apart"


def fit(one: Held, other: Held) -> bool:
    """Whether two entries of one log are shares of the same bytes, divided alike."""
    return bool(one.share and other.share and one.share[1] == other.share[1] and one.size == other.size)


def related(
    ones: Iterable[tuple[Path, Held]], others: Iterable[tuple[Path, Held]]
) -> Iterator[tuple[Path, Path, Held, Relation]]:
    """Pairs of different parts that may hold the same requests: both parts, the entry of the first, and their relation."""
    by_lines: dict[tuple[int, str], list[tuple[Path, Held]]] = {}
    by_beginning: dict[str, list[tuple[Path, Held]]] = {}
    divided = set()
    for part, held in others:
        by_lines.setdefault((held.lines, held.sha256), []).append((part, held))
        if not held.beginning:
            continue
        if held.share is not None:
            # One stands for all shares that fit together: there may be thousands.
            alike = (held.share[1], held.size, *held.beginning.values())
            if alike in divided:
                continue
            divided.add(alike)
        by_beginning.setdefault(held.beginning[min(held.beginning)], []).append((part, held))
    for part, held in ones:
        beginning = held.beginning[min(held.beginning)] if held.beginning else ""
        for other, its in [*by_lines.get((held.lines, held.sha256), ()), *by_beginning.get(beginning, ())]:
            found: Relation = "apart" if other == part else relation(held, its)
            if found != "apart":
                yield part, other, held, found
