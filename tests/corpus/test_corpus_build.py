"""Building a corpus: splits, duplicates, the ledger, and what is said when text is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import make_tokenizer

from stillroom.core.errors import CorpusError
from stillroom.core.progress import Progress
from stillroom.corpus.build import Corpus, build_corpus
from stillroom.corpus.documents import NO_ANSWER
from stillroom.corpus.split import SPLITS
from stillroom.recipe.corpus import CorpusConfig, JsonlSource, TextSource

TOKENIZER = make_tokenizer("bpe")
QUIET = Progress(quiet=True)


def build(*sources: Any, seed: int = 0, **options: Any) -> Corpus:
    config = CorpusConfig(sources=sources, **{"sequence_length": 32, **options})
    return build_corpus(config, TOKENIZER, seed, QUIET)


def write(path: Path, *texts: str | None) -> JsonlSource:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return JsonlSource(path=path, licence="CC0-1.0")


def texts(count: int, salt: str = "") -> list[str]:
    return [f"Document {salt}{index} says {'word ' * (index % 17)}and ends." for index in range(count)]


def read_back(corpus: Corpus) -> dict[str, list[str]]:
    """The texts of each split, from its tokens."""
    found: dict[str, list[str]] = {}
    for name, pieces in corpus.pieces.items():
        own: dict[int, list[int]] = {}
        for index, document in enumerate(pieces.documents.tolist()):
            begin, end = pieces.offsets[index : index + 2]
            own.setdefault(document, []).extend(pieces.ids[begin + pieces.repeated[index] : end].tolist())
        found[name] = [TOKENIZER.decode(ids, skip_special_tokens=True) for ids in own.values()]
    return found


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(3, 60), salt=st.text("abc", max_size=3), seed=st.integers(0, 5), length=st.sampled_from([16, 64])
)
def test_every_document_is_in_one_split_whole(tmp_path: Path, count: int, salt: str, seed: int, length: int) -> None:
    source = write(tmp_path / "a.jsonl", *texts(count, salt))
    corpus = build(source, seed=seed, sequence_length=length)
    found = read_back(corpus)
    everything = [text for side in found.values() for text in side]
    assert sorted(everything) == sorted(texts(count, salt))
    for name, sequences in corpus.splits.items():
        assert int(sequences.token_bytes.sum()) == sum(len(text.encode()) for text in found[name])


def test_a_grown_corpus_keeps_sides(tmp_path: Path) -> None:
    small = read_back(build(write(tmp_path / "a.jsonl", *texts(200))))
    large = read_back(build(write(tmp_path / "a.jsonl", *texts(260))))
    for name in ("validation", "heldout"):
        assert set(small[name]) <= set(large[name])
        assert not set(small[name]) & set(large["train"])


def test_the_seed_orders_and_nothing_else_does(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *texts(100))
    turned = write(tmp_path / "b.jsonl", *texts(100)[::-1])
    one, again, other = build(source, seed=1), build(turned, seed=1), build(source, seed=2)
    for name in SPLITS:
        assert one.splits[name].digests == again.splits[name].digests
    assert one.splits["train"].digests != other.splits["train"].digests
    assert set(read_back(one)["heldout"]) == set(read_back(other)["heldout"])


def test_duplicates_across_sources_and_empty_documents_are_counted(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", *texts(40), "Document 3 says " + "word " * 3 + "and ends.", " \n", None)
    second = write(tmp_path / "b.jsonl", *texts(50)[30:])
    corpus = build(first, second)
    one, two = corpus.ledger["sources"]
    assert (one["documents"], one["duplicates"], one["empty"]) == (43, 1, 2)
    assert (two["documents"], two["duplicates"], two["empty"]) == (20, 10, 0)
    assert (corpus.ledger["documents"], corpus.ledger["duplicates"], corpus.ledger["empty"]) == (63, 11, 2)
    everything = [text for side in read_back(corpus).values() for text in side]
    assert len(everything) == len(set(everything)) == sum(sum(s["kept"].values()) for s in (one, two))


def test_documents_that_are_too_long_are_left_out_and_counted(tmp_path: Path) -> None:
    short, long = texts(40), [f"Long {index}. " + "and more " * 200 for index in range(7)]
    corpus = build(write(tmp_path / "a.jsonl", *short, *long), skip_longer_than=150)
    assert sorted(text for side in read_back(corpus).values() for text in side) == sorted(short)
    assert corpus.ledger["too_long"] == corpus.ledger["sources"][0]["too_long"] == 7
    with pytest.raises(CorpusError, match="skip_longer_than"):
        build(write(tmp_path / "b.jsonl", *short, *long), skip_longer_than=150, train_tokens=10_000)
    with pytest.raises(CorpusError, match=r"Nothing is left for the train split(.|\n)*raise `corpus.skip_longer_than`"):
        build(write(tmp_path / "c.jsonl", *long), skip_longer_than=150)


def test_the_ledger_adds_up(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.jsonl", *texts(80)), write(tmp_path / "b.jsonl", *texts(60, "x"))
    corpus = build(first, second, train_tokens=640)
    ledger = corpus.ledger
    assert json.loads(json.dumps(ledger)) == ledger
    for name in SPLITS:
        sequences, entry = corpus.splits[name], ledger["splits"][name]
        assert entry["tokens"] == sequences.tokens == sum(source["tokens"][name] for source in ledger["sources"])
        assert entry["documents"] == len(read_back(corpus)[name]) == sum(s["kept"][name] for s in ledger["sources"])
        assert entry["sequences"] == len(sequences)
        assert entry["targets"] == int((sequences.targets >= 0).sum())
        assert entry["tokens_padding"] == int((sequences.segments < 0).sum())
        assert entry["tokens"] + entry["tokens_repeated"] + entry["tokens_padding"] == len(sequences) * sequences.length
        assert entry["targets_without_context"] == 0
    one = ledger["sources"][0]
    assert (one["kind"], one["name"], one["licence"]) == ("jsonl", str(tmp_path / "a.jsonl"), "CC0-1.0")
    assert (ledger["seed"], ledger["heldout_share"], ledger["validation_share"]) == (0, 0.1, 0.05)
    assert "SHA-256" in ledger["split_by"]


def test_a_sources_digest_is_that_of_its_documents(tmp_path: Path) -> None:
    def digest(*words: str) -> str:
        return str(build(write(tmp_path / "a.jsonl", *words)).ledger["sources"][0]["digest"])

    assert digest(*texts(10)) == digest(*texts(10))
    assert digest(*texts(10)) != digest(*texts(11))
    assert digest(*texts(10)) != digest(*texts(10)[::-1])


def test_limits_take_whole_pieces(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *texts(300))
    everything = build(source)
    limits = {"train": 100, "validation": 64, "heldout": 33}
    some = build(source, **{f"{name}_tokens": limit for name, limit in limits.items()})
    for name, limit in limits.items():
        assert limit <= some.pieces[name].tokens < limit + 32
        assert some.pieces[name].addresses == everything.pieces[name].addresses[: len(some.pieces[name])]


def test_one_document_is_a_small_share_of_what_is_measured_on(tmp_path: Path) -> None:
    long = [f"Long {index}: " + " ".join(f"word {index * number}" for number in range(60)) for index in range(120)]
    source = write(tmp_path / "a.jsonl", *texts(20), *long)
    free, corpus = build(source, max_document_tokens=10_000), build(source, max_document_tokens=50)
    for name in ("validation", "heldout"):
        entry, pieces = corpus.ledger["splits"][name], corpus.pieces[name]
        of_document = [int(pieces.targets[pieces.documents == index].sum()) for index in set(pieces.documents.tolist())]
        assert max(of_document) == 50
        left_out = free.ledger["splits"][name]["targets"] - entry["targets"]
        assert entry["targets_over_document_limit"] == left_out > 0
    assert corpus.pieces["train"].addresses == free.pieces["train"].addresses
    assert corpus.ledger["splits"]["train"]["targets_over_document_limit"] == 0
    with pytest.raises(CorpusError, match=r"`corpus.max_document_tokens` leaves out [\d,]+ more of long documents"):
        build(source, max_document_tokens=50, heldout_tokens=4000)


def test_a_grown_corpus_keeps_every_address(tmp_path: Path) -> None:
    long = [" ".join(f"word {index * number}" for number in range(50)) for index in range(20)]
    small = build(write(tmp_path / "a.jsonl", *texts(60), *long))
    large = build(write(tmp_path / "a.jsonl", *texts(90), *long, "More. " * 40), seed=3)
    for name in SPLITS:
        assert set(small.pieces[name].addresses) <= set(large.pieces[name].addresses)
        assert set(small.splits[name].digests) == set(small.pieces[name].addresses)


def test_a_sources_limit(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *texts(30)).model_copy(update={"limit": 12})
    assert build(source).ledger["sources"][0]["documents"] == 12


def test_across_documents(tmp_path: Path) -> None:
    corpus = build(write(tmp_path / "a.jsonl", *texts(60)), cross_documents=True)
    train = corpus.splits["train"]
    assert (train.segments[train.segments >= 0] == 0).all()
    assert len(torch.unique(train.documents[0])) > 1
    assert corpus.ledger["cross_documents"] is True


def test_chats_and_text_together(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    rows = [{"text": text} for text in texts(30)]
    rows += [{"messages": [*chat[:1], {"role": "assistant", "content": f"That {i}."}]} for i in range(30)]
    rows += [{"messages": chat[:1]}]  # Nobody answers: nothing to learn.
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = build(JsonlSource(path=path))
    assert corpus.ledger["empty"] == 1
    assert corpus.ledger["sources"][0]["notes"][NO_ANSWER] == 1
    train = corpus.splits["train"]
    real = train.segments >= 0
    assert 0 < int((real & ~train.loss_mask).sum()) < int(real.sum())
    assert "What" not in TOKENIZER.decode(train.ids[train.loss_mask])


def test_three_documents_are_enough_and_two_are_not(tmp_path: Path) -> None:
    corpus = build(write(tmp_path / "a.jsonl", *texts(3)))
    assert [corpus.ledger["splits"][name]["documents"] for name in SPLITS] == [1, 1, 1]
    with pytest.raises(CorpusError) as caught:
        build(write(tmp_path / "a.jsonl", *texts(2), "", *texts(2)))
    found = str(caught.value)
    assert found.startswith("Nothing is left for the ")
    assert " split: the corpus has 2 documents without empty ones and duplicates.\nAdd documents" in found


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ([" ", "\n", None], "3 documents were read from {}, and all were empty."),
        ([""], "1 document was read from {}, and it was empty."),
        ([], "0 documents were read from {}, and none was there."),
    ],
)
def test_an_empty_corpus(tmp_path: Path, content: list[str | None], wanted: str) -> None:
    source = write(tmp_path / "a.jsonl", *content)
    with pytest.raises(CorpusError) as caught:
        build(source)
    name = str(tmp_path / "a.jsonl")
    assert str(caught.value) == f"The corpus is empty: {wanted.format(name)}\nName other sources in the recipe."


def test_a_corpus_of_questions_alone(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "What?"}
    silent = {"role": "assistant", "content": "That.", "train": False}
    rows = [
        {"messages": []},
        {"messages": [asked]},
        {"messages": [asked, silent]},
        {"prompt": "What?", "completion": " "},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CorpusError) as caught:
        build(JsonlSource(path=path))
    assert "and all were empty (chats and prompts without an answer to learn: 3).\n" in str(caught.value)
    assert "messages of the role `assistant`, or completions" in str(caught.value)


def test_too_few_tokens(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *texts(20))
    there = build(source).splits["train"].tokens
    with pytest.raises(CorpusError) as caught:
        build(source, train_tokens=1_000_000)
    assert str(caught.value) == (
        f"The recipe asks for 1,000,000 train tokens, and the corpus (20 documents) has {there:,} for it.\n"
        "Add text, lower `corpus.train_tokens`, or leave it out to take all there is."
    )
    with pytest.raises(CorpusError) as caught:
        build(source, heldout_tokens=1_000_000)
    assert "asks for 1,000,000 heldout tokens" in str(caught.value)
    assert "or raise `corpus.heldout_share`, lower `corpus.heldout_tokens`" in str(caught.value)


def test_one_long_document_of_text_is_not_split(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("All in one file. " * 500)
    with pytest.raises(CorpusError, match="the corpus has 1 document without"):
        build(TextSource(path=tmp_path))


def test_documents_wait_in_the_scratch_folder_without_a_name(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    config = CorpusConfig(sources=(write(tmp_path / "a.jsonl", *texts(20)),), sequence_length=32)
    build_corpus(config, TOKENIZER, 0, QUIET, scratch)
    assert list(scratch.iterdir()) == []
