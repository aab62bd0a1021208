"""What a student has to carry: its name's beginning, notices, copies of licences and use policies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Obligations:
    """The union of what several teachers and texts ask for."""

    prefixes: set[str] = field(default_factory=set)
    notices: set[str] = field(default_factory=set)
    licences: dict[str, str | None] = field(default_factory=dict)
    policies: dict[str, str | None] = field(default_factory=dict)

    def add_licence(self, name: str, text: str | None) -> None:
        """Add a licence; one of the same name with another text (another owner's MIT) is beside it."""
        _add(self.licences, name, text)

    def add_policy(self, name: str, text: str | None) -> None:
        """Add a use policy."""
        _add(self.policies, name, text)

    def add(self, other: Obligations) -> None:
        """Add all of another's."""
        self.prefixes |= other.prefixes
        self.notices |= other.notices
        for name, text in other.licences.items():
            self.add_licence(name, text)
        for name, text in other.policies.items():
            self.add_policy(name, text)

    @property
    def name_prefix(self) -> str | None:
        """What the student's name begins with: the longest of those asked for."""
        return max(sorted(self.prefixes), key=len, default=None)

    @property
    def missing(self) -> list[str]:
        """Names of licences and use policies whose text no one supplied yet."""
        return sorted(name for group in (self.licences, self.policies) for name, text in group.items() if text is None)

    def as_dict(self) -> dict[str, Any]:
        """For ``terms.json``; a ``text`` of null is still to be supplied."""
        return {
            "name_prefix": self.name_prefix,
            "notices": sorted(self.notices),
            "licences": [{"name": name, "text": text} for name, text in sorted(self.licences.items())],
            "use_policies": [{"name": name, "text": text} for name, text in sorted(self.policies.items())],
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Obligations:
        """The reverse of :meth:`as_dict`."""
        return cls(
            prefixes={value["name_prefix"]} if value["name_prefix"] else set(),
            notices=set(value["notices"]),
            licences={entry["name"]: entry["text"] for entry in value["licences"]},
            policies={entry["name"]: entry["text"] for entry in value["use_policies"]},
        )


def _add(group: dict[str, str | None], name: str, text: str | None) -> None:
    number = 1
    key = name
    while key in group:
        if group[key] is None or text is None or _same(group[key], text):
            group[key] = group[key] or text
            return
        number += 1
        key = f"{name}-{number}"
    group[key] = text


def _same(one: str | None, other: str | None) -> bool:
    return " ".join((one or "").split()) == " ".join((other or "").split())


def unmet(terms: dict[str, Any], *, name: str, notice: str, texts: dict[str, str]) -> list[str]:
    """What a package lacks of the obligations in its ``terms.json``; nothing where it carries all.

    Args:
        terms: The content of ``terms.json``.
        name: The package's name.
        notice: The content of its file NOTICE.
        texts: The contents of its licence files, whatever they are called.

    Returns:
        Sentences for a person.
    """
    owed = Obligations.from_dict(terms["obligations"])
    lacking = []
    if owed.name_prefix and not name.startswith(owed.name_prefix):
        lacking.append(f"its name `{name}` does not begin with `{owed.name_prefix}`")
    for sentence in sorted(owed.notices):
        if sentence not in notice:
            lacking.append(f"NOTICE does not say: {sentence}")
    there = {" ".join(text.split()) for text in texts.values()}
    for what, group in (("licence", owed.licences), ("use policy", owed.policies)):
        for title, text in sorted(group.items()):
            if text is None:
                lacking.append(f"the text of the {what} {title} was never supplied")
            elif " ".join(text.split()) not in there:
                lacking.append(f"the {what} {title} is not among its files")
    return lacking
