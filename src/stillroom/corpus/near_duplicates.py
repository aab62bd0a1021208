"""Documents of validation and held-out text that training text nearly repeats.

Equal documents are dropped when a corpus is built; a copy with another date or a changed sentence is not. It is found as in
Lee et al. 2022 ("Deduplicating training data makes language models better", arXiv 2107.06499): shingles of five words, MinHash
(Broder 1997) with locality-sensitive hashing for candidates, then the true Jaccard similarity of their shingles.

Only the signatures of the two small splits are in memory; training text streams past, so that memory does not grow with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stillroom.corpus.documents import Document

if TYPE_CHECKING:
    from rensa import RMinHash

SHINGLE = 5
"""Words of a shingle."""
THRESHOLD = 0.8
"""Jaccard similarity from which two documents are near-duplicates."""
PERMUTATIONS = 128
BANDS = 32
"""With four rows a band a pair of the threshold's similarity is a candidate in all but one of ten million cases."""
SLACK = 0.15
"""An estimate may be so much below the threshold (four standard errors) and the pair is still compared exactly."""
SEED = 0
PART = 1 << 16
"""Words whose shingles exist at the same time."""
NAMED = 3
"""Pairs that are named, the most similar first."""
SHOWN = 60
"""Characters of a document that name it."""
_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: written without spaces, so that each letter is a word."""
_WORD = re.compile(rf"[{_LETTERS}]|[^\W{_LETTERS}]+")

Get = Callable[[str], tuple[Document, str]]
"""Gives the document of a digest, and the name of its source."""


def near_duplicates(train: Sequence[str], against: dict[str, Sequence[str]], get: Get) -> dict[str, Any]:
    """Compare training text with other splits.

    Args:
        train: Digests of the documents that are trained on.
        against: Digests by split, such as ``validation`` and ``heldout``.
        get: Reads a document.

    Returns:
        ``threshold``, ``shingle_words``, ``permutations``, and for each split ``documents`` (those that some training document
        nearly repeats), ``of``, ``share`` (None without documents) and ``named``: for the most similar pairs the
        ``similarity``, and of the document (``document``) and the training document (``train``) the source's name and the
        first words.
    """
    from rensa import RMinHashLSH

    index = RMinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS, num_bands=BANDS)
    watched = [(split, digest) for split, digests in against.items() for digest in digests]
    signatures = []
    for number, (_, digest) in enumerate(watched):
        signatures.append(signature(get(digest)[0]))
        index.insert(number, signatures[-1])
    found: dict[int, tuple[float, str]] = {}
    for digest in train if watched else ():
        document = get(digest)[0]
        own = signature(document)
        # One near-duplicate is enough to count a document, so that a text that is everywhere is compared once.
        candidates = [
            number
            for number in index.query(own)
            if number not in found and own.jaccard(signatures[number]) >= THRESHOLD - SLACK
        ]
        if candidates:
            mine = set(shingles(document))
            for number in candidates:
                theirs = set(shingles(get(watched[number][1])[0]))
                similarity = len(mine & theirs) / len(mine | theirs)
                if similarity >= THRESHOLD:
                    found[number] = (similarity, digest)
    result: dict[str, Any] = {"threshold": THRESHOLD, "shingle_words": SHINGLE, "permutations": PERMUTATIONS}
    for split, digests in against.items():
        pairs = sorted(
            (
                (similarity, number, digest)
                for number, (similarity, digest) in found.items()
                if watched[number][0] == split
            ),
            key=lambda pair: (-pair[0], pair[1]),
        )
        result[split] = {
            "documents": len(pairs),
            "of": len(digests),
            "share": len(pairs) / len(digests) if digests else None,
            "named": [
                {
                    "similarity": round(similarity, 3),
                    "document": _name(*get(watched[number][1])),
                    "train": _name(*get(digest)),
                }
                for similarity, number, digest in pairs[:NAMED]
            ],
        }
    return result


def signature(document: Document) -> RMinHash:
    """The MinHash of a document's shingles."""
    from rensa import RMinHash

    found = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
    part: list[str] = []
    for shingle in shingles(document):
        part.append(shingle)
        if len(part) == PART:
            found.update(part)
            part = []
    found.update(part)
    return found


def shingles(document: Document) -> Iterator[str]:
    """Every five words in a row, in small letters; of a shorter text, all of it."""
    text = text_of(document).lower()
    words = _WORD.findall(text) or [text.strip()]
    for start in range(max(1, len(words) - SHINGLE + 1)):
        yield " ".join(words[start : start + SHINGLE])


def text_of(document: Document) -> str:
    """A document's own text. Of a chat what user, assistant and tools say: chats share their system prompts."""
    if not document.messages:
        return document.text
    said = (message for message in document.messages if message["role"] not in ("system", "developer"))
    return "\n".join(
        " ".join(str(part) for part in (message["content"], message.get("tool_calls", "")) if part) for message in said
    )


def _name(document: Document, source: str) -> dict[str, str]:
    text = " ".join(text_of(document).split())
    return {"source": source, "begins": text if len(text) <= SHOWN else text[:SHOWN] + "…"}
