"""Chunks of documents, and what a writer is asked about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SHORTEST_CHUNK = 200
"""Characters under which a chunk says too little to be asked about."""
QUESTION = (
    "Read this passage.\n\n{chunk}\n\nWrite one question that the passage answers and that makes sense without it. "
    "Write the question only."
)
ANSWER = "Read this passage.\n\n{chunk}\n\nAnswer this question from the passage, in your own words: {question}"
REPHRASE = (
    "Rewrite this passage in other words, with all of its facts and nothing else:\n\n{chunk}",
    "Turn this passage into questions and answers, with all of its facts and nothing else:\n\n{chunk}",
    "Summarise this passage in a few sentences:\n\n{chunk}",
)
"""Each draw of a chunk takes the next."""
OPEN_BOOK = "{chunk}\n\n{question}"
_PARAGRAPH = re.compile(r"\n\s*\n")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")


@dataclass(frozen=True)
class Chunk:
    """A stretch of a training document.

    Attributes:
        document: SHA-256 of the document.
        number: Its place in the document.
        text: The stretch.
    """

    document: str
    number: int
    text: str


def chunks_of(document: str, text: str, most: int) -> Iterator[Chunk]:
    """The chunks of a text, of at most so many characters each; shorter than :data:`SHORTEST_CHUNK` is left out."""
    number = 0
    for stretch in _stretches(text, most):
        if len(stretch) >= SHORTEST_CHUNK:
            yield Chunk(document, number, stretch)
            number += 1


def _stretches(text: str, most: int) -> Iterator[str]:
    held = ""
    for part in _parts(text, most):
        if held and len(held) + len(part) + 2 > most:
            yield held
            held = ""
        held = f"{held}\n\n{part}" if held else part
    if held:
        yield held


def _parts(text: str, most: int) -> Iterator[str]:
    """Paragraphs; longer ones by sentences, and longer sentences by length."""
    for paragraph in _PARAGRAPH.split(text):
        if len(paragraph) <= most:
            if paragraph.strip():
                yield paragraph.strip()
            continue
        held = ""
        for sentence in _SENTENCE.split(paragraph):
            while len(sentence) > most:
                if held:
                    yield held
                    held = ""
                yield sentence[:most]
                sentence = sentence[most:]
            if held and len(held) + len(sentence) + 1 > most:
                yield held
                held = ""
            held = f"{held} {sentence}" if held else sentence
        if held.strip():
            yield held.strip()
