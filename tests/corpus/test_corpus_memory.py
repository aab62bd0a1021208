"""Memory of a corpus while it is built: some bytes per document, whatever number of tokens a document has."""

from __future__ import annotations

import hashlib
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_tokenizer

from stillroom.core import files
from stillroom.core.progress import Progress
from stillroom.corpus import build, columns, near_duplicates, pieces
from stillroom.corpus.documents import Document
from stillroom.corpus.found import Found
from stillroom.recipe.corpus import CorpusConfig

PER_DOCUMENT = 300
"""Bytes of memory for one more document that fits into a sequence, stated in docs/concepts/scale.md."""


def built(folder: Path, documents: int, words: int) -> tuple[int, int]:
    """Peak of memory while a corpus is built and written, and its tokens."""
    folder /= f"{documents}-{words}"
    folder.mkdir()
    numbers = random.Random(1)
    with (folder / "text.jsonl").open("w") as file:
        for number in range(documents):
            text = f"{number} " + " ".join(str(numbers.randrange(1000)) for _ in range(words))
            file.write(json.dumps({"text": text}) + "\n")
    source = {"kind": "jsonl", "path": str(folder / "text.jsonl"), "licence": "CC0-1.0"}
    config = CorpusConfig.model_validate({"sources": [source], "sequence_length": 512})
    tokenizer = make_tokenizer("bpe")
    tracemalloc.start()
    try:
        corpus = build.build_corpus(config, tokenizer, 0, Progress(quiet=True), folder)
        for name, split in corpus.pieces.items():
            split.save(folder / f"{name}.safetensors")
        return tracemalloc.get_traced_memory()[1], sum(split.tokens for split in corpus.pieces.values())
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("words", [10, 100])
def test_memory_grows_with_documents_and_not_with_their_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: int
) -> None:
    # A batch takes the same memory in every corpus: here it is so small that it does not hide the rest.
    monkeypatch.setattr(build, "BATCH", 8)
    monkeypatch.setattr(near_duplicates, "BATCH", 8)
    monkeypatch.setattr(columns, "CHUNK", 1 << 12)
    monkeypatch.setattr(pieces, "CHUNK", 1 << 12)
    monkeypatch.setattr(pieces, "PART", 8)
    few, many = (300, 1200) if words == 10 else (150, 450)
    built(tmp_path, 10, words)
    (small, tokens), (large, more) = built(tmp_path, few, words), built(tmp_path, many, words)
    assert large - small <= PER_DOCUMENT * (many - few)
    if words == 100:
        assert more - tokens > 300 * (many - few)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=60), st.integers(0, 5))
def test_found_documents_are_those_of_a_dictionary(drawn: list[tuple[int, int]], seed: int) -> None:
    found, expected = Found(), {}
    for source, number in drawn:
        # The same first bytes: they meet in the table.
        digest = ("00" * 8 if number % 2 else "ff" * 8) + hashlib.sha256(str(number).encode()).hexdigest()[16:]
        assert found.add(digest, source) == (digest not in expected)
        expected.setdefault(digest, source)
    numbers = range(len(found))
    assert [found.digest(number) for number in numbers] == list(expected)
    assert [found.source(number) for number in numbers] == list(expected.values())
    assert [row.tobytes().hex() for row in found.digests] == list(expected)
    ordered = sorted(expected, key=lambda digest: files.digest_bytes(f"{seed}:{digest}".encode()))
    assert [found.digest(number) for number in found.order(seed)] == ordered


def test_the_table_of_found_documents_grows() -> None:
    found = Found()
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(5000)]
    assert all(found.add(digest, 0) for digest in digests)
    assert not any(found.add(digest, 1) for digest in digests)
    assert len(found) == 5000


def test_candidates_are_those_of_the_library() -> None:
    from rensa import RMinHashLSH

    chance = random.Random(3)
    first = [chance.choices("abcdefghijklmnopqrstuvwxyz", k=60) for _ in range(40)]
    changed = [[chance.choice("xyz") if chance.random() < 0.06 else word for word in words] for words in first]
    signatures = [
        [near_duplicates.signature(Document(" ".join(words))) for words in group] for group in (first, changed)
    ]
    index = RMinHashLSH(
        threshold=near_duplicates.THRESHOLD, num_perm=near_duplicates.PERMUTATIONS, num_bands=near_duplicates.BANDS
    )
    for number, own in enumerate(signatures[0]):
        index.insert(number, own)
    least = near_duplicates.THRESHOLD - near_duplicates.SLACK
    expected = [
        sorted(number for number in index.query(own) if own.jaccard(signatures[0][number]) >= least)
        for own in signatures[1]
    ]
    matrices = [np.asarray([own.digest() for own in group], dtype=np.uint32) for group in signatures]
    found = near_duplicates._Watched(matrices[0]).candidates(matrices[1])
    assert [numbers.tolist() for numbers in found] == expected
    assert 5 < sum(map(len, expected)) < 40
