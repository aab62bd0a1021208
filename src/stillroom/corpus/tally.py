"""What was taken from a source, what was passed over, and what was changed on the way: counted, so that nothing is silent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from stillroom.core.plain import shown


@dataclass
class Tally:
    """Counts of one source.

    Attributes:
        files: Files that were taken.
        passed_over: Files that were not, by the ending of their names in lower case.
        shapes: Rows by the shape that they were read in.
        unused: Keys of rows and messages that are in no text, and how often they had a value.
        notes: What else is to be said, and how often it happened.
    """

    files: int = 0
    passed_over: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON, most frequent first."""
        return {
            "files": {"taken": self.files, "passed_over": _writable(self.passed_over)},
            "shapes": _writable(self.shapes),
            "unused_keys": _writable(self.unused),
            "notes": _writable(self.notes),
        }


def _writable(counts: Counter[str]) -> dict[str, int]:
    """Counts by names that UTF-8 can hold and a page can show: control and half characters of a key or file are written out."""
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[shown(name, one_line=True)] += count
    return dict(found.most_common())


def sentences(tally: dict[str, Any]) -> list[str]:
    """What :meth:`Tally.as_dict` has to tell a user, in short sentences; nothing where everything was taken as it is."""
    if "files" not in tally:
        # A data manifest of 0.1.0 has no counts.
        return []
    found = []
    taken, passed = tally["files"]["taken"], tally["files"]["passed_over"]
    if passed:
        total = taken + sum(passed.values())
        found.append(f"took {taken:,} of {total:,} files; passed over {_counts(passed)}")
    shapes = {shape: count for shape, count in tally["shapes"].items() if shape not in ("text", "messages")}
    if shapes:
        found.append(f"rows read as {_counts(shapes)}")
    if tally["unused_keys"]:
        found.append(f"keys that are in no text: {_counts(tally['unused_keys'])}")
    found += [f"{what}: {count:,}" for what, count in tally["notes"].items()]
    return found


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
