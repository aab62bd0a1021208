"""Documents of validation and held-out text that training text nearly repeats.

Equal documents are dropped when a corpus is built; a copy with another date or a changed sentence is not. It is found as in
Lee et al. 2022 ("Deduplicating training data makes language models better", arXiv 2107.06499): shingles of five words, MinHash
(Broder 1997) with locality-sensitive hashing for candidates, then the true Jaccard similarity of their shingles.

Only the signatures of the two small splits are in memory (about 900 bytes for each of their documents, which are 15 of 100 by
default); training text streams past, so that memory does not grow with it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

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
BATCH = 256
"""Training documents whose signatures exist at the same time."""
PART = 1 << 16
"""Words whose shingles exist at the same time."""
NAMED = 3
"""Pairs that are named, the most similar first."""
SHOWN = 60
"""Characters of a document that name it."""
_LETTERS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
"""Thai, Lao, Burmese, Khmer, Japanese, Chinese: written without spaces, so that each letter is a word."""
_WORD = re.compile(rf"[{_LETTERS}]|[^\W{_LETTERS}]+")

Array = npt.NDArray[Any]
Key = TypeVar("Key")
"""What names a document, such as its number."""


def near_duplicates(
    train: Sequence[Key], against: Mapping[str, Sequence[Key]], get: Callable[[Key], tuple[Document, str]]
) -> dict[str, Any]:
    """Compare training text with other splits.

    Args:
        train: Names of the documents that are trained on.
        against: Names by split, such as ``validation`` and ``heldout``.
        get: Gives the document of a name, and the name of its source.

    Returns:
        ``threshold``, ``shingle_words``, ``permutations``, and for each split ``documents`` (those that some training document
        nearly repeats), ``of``, ``share`` (None without documents) and ``named``: for the most similar pairs the
        ``similarity``, and of the document (``document``) and the training document (``train``) the source's name and the
        first words.
    """
    first = dict(zip(against, itertools.accumulate(map(len, against.values()), initial=0), strict=False))
    watched = _Watched(
        _signatures((key for keys in against.values() for key in keys), sum(map(len, against.values())), get)
    )

    def named(number: int) -> Key:
        split = next(split for split, keys in against.items() if first[split] <= number < first[split] + len(keys))
        return against[split][number - first[split]]

    found: dict[int, tuple[float, Key]] = {}
    # One near-duplicate is enough to count a document, so that a text that is everywhere is compared once.
    left = np.ones(len(watched), bool)
    for begin in range(0, len(train) if len(watched) else 0, BATCH):
        keys = train[begin : begin + BATCH]
        for key, candidates in zip(keys, watched.candidates(_signatures(keys, len(keys), get)), strict=True):
            mine: set[str] | None = None
            for number in candidates[left[candidates]].tolist():
                mine = set(shingles(get(key)[0])) if mine is None else mine
                theirs = set(shingles(get(named(number))[0]))
                similarity = len(mine & theirs) / len(mine | theirs)
                if similarity >= THRESHOLD:
                    found[number] = (similarity, key)
                    left[number] = False
    result: dict[str, Any] = {"threshold": THRESHOLD, "shingle_words": SHINGLE, "permutations": PERMUTATIONS}
    for split, keys in against.items():
        pairs = sorted(
            (
                (similarity, number, key)
                for number, (similarity, key) in found.items()
                if first[split] <= number < first[split] + len(keys)
            ),
            key=lambda pair: (-pair[0], pair[1]),
        )
        result[split] = {
            "documents": len(pairs),
            "of": len(keys),
            "share": len(pairs) / len(keys) if keys else None,
            "named": [
                {
                    "similarity": round(similarity, 3),
                    "document": _name(*get(named(number))),
                    "train": _name(*get(key)),
                }
                for similarity, number, key in pairs[:NAMED]
            ],
        }
    return result


class _Watched:
    """The documents of the small splits, by their signatures: about 900 bytes for each.

    Args:
        signatures: Their MinHashes, [W, PERMUTATIONS] uint32.
    """

    def __init__(self, signatures: Array) -> None:
        self._signatures = signatures
        # Of each band the documents' hashes in ascending order, and whose they are.
        self._hashes = np.empty((BANDS, len(signatures)), np.uint64)
        self._numbers = np.empty((BANDS, len(signatures)), np.uint32)
        for band in range(BANDS):
            hashes = _band_hashes(signatures, band)
            self._numbers[band] = order = np.argsort(hashes, kind="stable")
            self._hashes[band] = hashes[order]

    def __len__(self) -> int:
        return len(self._signatures)

    def candidates(self, signatures: Array) -> list[Array]:
        """For each of other documents, [N, PERMUTATIONS], the numbers of those that it may nearly repeat."""
        begins, ends = (np.empty((BANDS, len(signatures)), np.int64) for _ in range(2))
        for band in range(BANDS):
            hashes = _band_hashes(signatures, band)
            begins[band] = np.searchsorted(self._hashes[band], hashes, "left")
            ends[band] = np.searchsorted(self._hashes[band], hashes, "right")
        found = []
        for number, signature_ in enumerate(signatures):
            bands = np.flatnonzero(ends[:, number] > begins[:, number])
            same = [self._numbers[band, begins[band, number] : ends[band, number]] for band in bands]
            numbers = np.unique(np.concatenate(same)) if same else np.zeros(0, np.uint32)
            estimates = (self._signatures[numbers] == signature_).mean(axis=1)
            found.append(numbers[estimates >= THRESHOLD - SLACK])
        return found


def _band_hashes(signatures: Array, band: int) -> Array:
    """One number for the rows of a band, [N] uint64 (FNV-1a, a word at a time). Another band with the same one is no error:
    candidates are compared.
    """
    rows = PERMUTATIONS // BANDS
    found = np.full(len(signatures), 0xCBF29CE484222325, np.uint64)
    for column in range(band * rows, (band + 1) * rows):
        found = (found ^ signatures[:, column]) * np.uint64(0x100000001B3)
        found ^= found >> np.uint64(29)
    return found


def _signatures(keys: Iterable[Key], count: int, get: Callable[[Key], tuple[Document, str]]) -> Array:
    """The MinHashes of documents, [count, PERMUTATIONS] uint32."""
    found = np.empty((count, PERMUTATIONS), np.uint32)
    for number, key in enumerate(keys):
        found[number] = signature(get(key)[0]).digest()
    return found


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
