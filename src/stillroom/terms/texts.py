"""Texts of licences: the copies that Stillroom holds, and whether another text is the same."""

from __future__ import annotations

import functools
import re
from pathlib import Path

HELD = Path(__file__).parent / "licences"
BEGINNING = 600
"""Characters at the beginning of a text in which its title is looked for."""
_BODIES = {
    "Apache-2.0": ("terms and conditions for use reproduction and distribution 1", "end of terms and conditions"),
    "MIT": ("permission is hereby granted free of charge", "dealings in the software"),
}
# A line of copyright names owners and years; where it says more, the text is another one.
_MORE = r"not|may|must|shall|only|except|commercial|conditions?|provided|licen[cs]es?|use"
_OWNER = rf"(?: ?copyright (?:(?!\b(?:{_MORE})\b).){{0,200}})?"
_TITLES = {
    "Apache-2.0": re.compile(
        rf"{_OWNER} ?(the )?apache license( version 2.0)?( january 2004)?( http www.apache.org licenses)?"
    ),
    "MIT": re.compile(rf"{_OWNER} ?((the )?mit license( mit)?)?{_OWNER}( all rights reserved)?"),
}


def normal(text: str) -> str:
    """Words in lower case with single blanks: how names and titles are compared."""
    return " ".join(text.lower().split())


def words_of(text: str) -> str:
    """A text without its layout and punctuation: letters, digits and inner dots."""
    return " ".join(word for word in (part.strip(".") for part in re.split(r"[^\w.]+", text.lower())) if word)


def marks_of(text: str) -> str:
    """The beginning of a text, in which its title is."""
    return words_of(text[: 4 * BEGINNING])[:BEGINNING]


@functools.cache
def held_text(name: str) -> str | None:
    """The copy of a licence that Stillroom holds, or None."""
    path = HELD / f"{name}.txt"
    return path.read_text(encoding="utf-8") if name in _BODIES else None


def is_same(name: str, text: str) -> bool:
    """Whether a text is the held licence, word by word, with nothing but titles and copyright lines around it."""
    before, body, after = _parts(name, words_of(text))
    _, held_body, held_after = _held(name)
    if body != held_body or not _TITLES[name].fullmatch(before):
        return False
    return after in ("", held_after)


@functools.cache
def _held(name: str) -> tuple[str, str, str]:
    return _parts(name, words_of(held_text(name) or ""))


def _parts(name: str, words: str) -> tuple[str, str, str]:
    """What is before the body, the body, and what is behind it without names of copyright owners."""
    first, last = _BODIES[name]
    begin, end = words.find(first), words.rfind(last)
    if begin < 0 or end < begin:
        return words, "", ""
    after = words[end + len(last) :].strip()
    after = re.sub(rf"{_OWNER} licensed under the apache", " licensed under the apache", after).strip()
    return words[:begin].strip(), words[begin : end + len(last)], after
