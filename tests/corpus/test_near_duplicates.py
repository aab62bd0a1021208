"""Near-duplicates between splits: what counts as one, and what does not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tiny_models import make_tokenizer

from stillroom.core.progress import Progress
from stillroom.corpus.build import build_corpus
from stillroom.corpus.documents import Document
from stillroom.corpus.near_duplicates import NAMED, near_duplicates, shingles
from stillroom.corpus.split import split_of
from stillroom.recipe.corpus import CorpusConfig, JsonlSource

WORDS = [f"word{index}" for index in range(2000)]


def text(seed: int, words: int = 200) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def changed(original: str, every: int) -> str:
    """Every so manieth word is another one."""
    return " ".join(f"other{i}" if i % every == every - 1 else word for i, word in enumerate(original.split()))


def found_in(train: list[Document], heldout: list[Document]) -> dict[str, object]:
    documents = {f"t{i}": document for i, document in enumerate(train)} | {
        f"h{i}": document for i, document in enumerate(heldout)
    }
    result = near_duplicates(
        [key for key in documents if key[0] == "t"],
        {"heldout": [key for key in documents if key[0] == "h"]},
        lambda key: (documents[key], "letters"),
    )["heldout"]
    assert isinstance(result, dict)
    return result


def test_a_copy_with_few_changes_is_found_and_named() -> None:
    train = [Document(text(seed)) for seed in range(30)]
    found = found_in(
        train, [Document(changed(text(3), 100).upper()), Document(text(99)), Document(changed(text(4), 8))]
    )
    # Two words of 200 are others, one of them the last: 190 shingles are common, 202 are in one of the two. Every eighth: few.
    assert (found["documents"], found["of"], found["share"]) == (1, 3, pytest.approx(1 / 3))
    (pair,) = found["named"]  # type: ignore[misc]
    assert pair["similarity"] == pytest.approx(190 / 202, abs=1e-3)
    assert pair["document"]["source"] == "letters"
    assert pair["train"]["begins"].startswith(text(3)[:40])


def test_chats_that_share_a_system_prompt_are_not_near_duplicates() -> None:
    def chat(seed: int) -> Document:
        roles = ("system", text(0, 300)), ("user", text(seed, 20)), ("assistant", text(seed + 1000, 40))
        return Document(messages=tuple({"role": role, "content": content} for role, content in roles))

    assert found_in([chat(1)], [chat(2)])["documents"] == 0
    assert found_in([chat(1)], [chat(1)])["documents"] == 1


def test_short_and_empty_texts_and_scripts_without_spaces() -> None:
    assert (
        found_in([Document("Yes."), Document("!!!")], [Document("yes"), Document("No."), Document("???")])["documents"]
        == 1
    )
    assert list(shingles(Document("今日は良い天気"))) == ["今 日 は 良 い", "日 は 良 い 天", "は 良 い 天 気"]
    assert found_in([Document("a b c")], [])["share"] is None
    many = [Document(text(seed)) for seed in range(NAMED + 2)]
    found = found_in(many, [Document(changed(document.text, 150)) for document in many])
    assert found["documents"] == NAMED + 2
    assert len(found["named"]) == NAMED  # type: ignore[arg-type]


def test_the_ledger_counts_them(tmp_path: Path) -> None:
    originals = [text(seed, 60) for seed in range(60)]
    rows = [row for original in originals for row in (original, original + " end")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    config = CorpusConfig(
        sources=(JsonlSource(path=tmp_path / "a.jsonl", licence="CC0-1.0"),),
        sequence_length=64,
        validation_share=0.1,
        heldout_share=0.2,
    )
    ledger = build_corpus(config, make_tokenizer("bpe"), 0, Progress(quiet=True)).ledger
    assert ledger["duplicates"] == 0
    found = ledger["near_duplicates"]
    twins = [(Document(original).digest, Document(original + " end").digest) for original in originals]
    sides = split_of([digest for pair in twins for digest in pair], 0.1, 0.2)
    both = [(sides[a], sides[b]) for a, b in twins] + [(sides[b], sides[a]) for a, b in twins]
    for name in ("validation", "heldout"):
        here = [other for side, other in both if side == name]
        assert found[name]["of"] == len(here) == ledger["splits"][name]["documents"]
        assert found[name]["documents"] == here.count("train")
    # One pair is in the validation split on both sides, which is no leak.
    assert found["validation"]["documents"] < found["validation"]["of"]
