"""What of a writer's text is left out, and why: rules in a fixed order, each counted."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable

from stillroom.corpus.documents import Document
from stillroom.corpus.near_duplicates import BANDS, PERMUTATIONS, SLACK, THRESHOLD, shingles, signature
from stillroom.corpus.refusals import refuses

REASONS = (
    "empty or too short",
    "not ended",
    "another script",
    "repeats itself",
    "near-duplicate of held-out text",
    "near-duplicate of written text",
    "refusal",
    "not supported by its chunk",
    "spells a control token",
    "has half a character",
)
"""Why a text is left out, in the order in which it is asked; the last is asked before all others."""
SHORTEST = 3
"""Characters under which a text is empty."""
GRAM = 4
"""Words of a sequence that may not come again and again."""
SAME_SCRIPT = 0.5
"""Share of letters in the chunk's own script below which a text is in another."""
_WORD = re.compile(r"\w+")
_SHORT = 4
"""Letters from which on a word counts as a content word."""


class Filters:
    """Decides about texts, one after the other.

    Args:
        kept_out: Text of validation and held-out documents: what nearly repeats it is left out.
        distinct: Least share of distinct four-word sequences.
        support: Least share of an answer's content words that its chunk has.
        control: Spellings of control tokens, which the corpus would read as the tokens themselves.
    """

    def __init__(
        self, kept_out: Iterable[Document], distinct: float, support: float, control: Collection[str] = ()
    ) -> None:
        from rensa import RMinHashLSH

        self.counts: Counter[str] = Counter()
        self._distinct, self._support, self._control = distinct, support, control
        self._index = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._known: list[tuple[Document, bool]] = []
        self._signatures: list[object] = []
        for document in kept_out:
            self._remember(document, written=False)

    def reason(self, text: str, chunk: str, *, ended: bool, answer: bool) -> str | None:
        """Why a text is left out, counted; None where it is kept, and remembered.

        Args:
            text: What was written.
            chunk: What it was written about.
            ended: Whether the writer ended it, and not the limit.
            answer: Whether it answers a question, and has to be supported by the chunk.
        """
        found = self._reason(text.strip(), chunk, ended, answer)
        self.counts[found or "kept"] += 1
        return found

    def _reason(self, text: str, chunk: str, ended: bool, answer: bool) -> str | None:
        if not is_whole(text):
            return REASONS[9]
        if len(text) < SHORTEST:
            return REASONS[0]
        if not ended:
            return REASONS[1]
        if in_script(text, script_of(chunk)) < SAME_SCRIPT:
            return REASONS[2]
        if distinct_share(text) < self._distinct:
            return REASONS[3]
        document = Document(text=text)
        near = self._near(document)
        if near is not None:
            return REASONS[5] if near else REASONS[4]
        if refuses(text):
            return REASONS[6]
        if answer and supported(text, chunk) < self._support:
            return REASONS[7]
        if spells(text, self._control):
            return REASONS[8]
        self._remember(document, written=True)
        return None

    def _remember(self, document: Document, *, written: bool) -> None:
        own = signature(document)
        self._index.insert(len(self._known), own)
        self._signatures.append(own)
        self._known.append((document, written))

    def _near(self, document: Document) -> bool | None:
        """Whether what a text nearly repeats was written; None where it repeats nothing."""
        own = signature(document)
        mine = set(shingles(document))
        found: bool | None = None
        for number in self._index.query(own):
            if own.jaccard(self._signatures[number]) < THRESHOLD - SLACK:
                continue
            other, written = self._known[number]
            theirs = set(shingles(other))
            if len(mine & theirs) / len(mine | theirs) >= THRESHOLD:
                if not written:
                    return False
                found = True
        return found


def is_whole(text: str) -> bool:
    """Whether a text can be written as UTF-8. JSON allows half a character (a lone surrogate), which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def spells(text: str, control: Collection[str]) -> bool:
    """Whether a text spells one of some tokens."""
    return any(token in text for token in control)


def distinct_share(text: str) -> float:
    """Share of a text's four-word sequences that are distinct; 1 where it has none."""
    words = _WORD.findall(text.lower())
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def supported(answer: str, chunk: str) -> float:
    """Share of an answer's content words (numbers, and words of four letters or more) that its chunk has; 1 without any."""
    content = {word for word in _WORD.findall(answer.lower()) if len(word) >= _SHORT or word.isdecimal()}
    if not content:
        return 1.0
    return len(content & set(_WORD.findall(chunk.lower()))) / len(content)


def script_of(text: str) -> str:
    """The script of most of a text's letters, by the first word of their Unicode names; empty without letters."""
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else ""


def in_script(text: str, script: str) -> float:
    """Share of a text's letters that are of a script; 1 where either has no letters."""
    letters = [letter for letter in text if letter.isalpha()]
    if not letters or not script:
        return 1.0
    return sum(_script(letter) == script for letter in letters) / len(letters)


def _script(letter: str) -> str:
    return unicodedata.name(letter, "").split(" ")[0].split("-")[0]
