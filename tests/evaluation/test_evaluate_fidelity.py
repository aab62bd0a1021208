"""Fidelity against direct computation, with other vocabularies too; slices add up; memory and kills."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from students.tiny_families import tiny_sequences
from tiny_models import make_model, make_tokenizer

from benchmarks.faults import bench_with
from stillroom.core.progress import Task
from stillroom.corpus.sequences import IGNORED
from stillroom.evaluation.bench import Loaded
from stillroom.evaluation.fidelity import Contender, compare
from stillroom.evaluation.heldout import HeldOut, InMemory
from stillroom.evaluation.measures import do_measures
from stillroom.evaluation.metric import Metric
from stillroom.evaluation.metrics.languages import retention, sections
from stillroom.evaluation.registry import metric
from stillroom.evaluation.tally import CONFIDENCE_BINS, MEASURES, Drawing, Tally, calibration, headline
from stillroom.evaluation.tokens import CLASSES, class_of, position_edges, position_labels
from stillroom.signals.vocabulary_map import VocabularyMap

IDS = 96


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return tuple(make_model("llama", rows=IDS, layers=2, seed=seed) for seed in (1, 2))  # type: ignore[return-value]


def test_a_trimmed_vocabulary_is_compared_exactly(pair: tuple[Any, Any]) -> None:
    """Teacher's ids 60 and above are said in two pieces: their mass goes to the first."""
    teacher, _ = pair
    pieces = [[index] if index < 60 else [index - 60, 59] for index in range(IDS)]
    vocabulary = VocabularyMap.from_pieces(pieces, 64, 60)
    student = make_model("llama", rows=64, layers=2, seed=3)
    sequences = tiny_sequences(3, 24, ids=IDS)
    tallies = [Tally({"all": 1}, 16) for _ in range(2)]
    documents = compare(
        teacher,
        tallies[0],
        [Contender("student", student, vocabulary, tallies[1])],
        InMemory(sequences),
        np.zeros(0),
        Task("", 1, ""),
    )
    assert documents == len(set(sequences.documents.unique().tolist()))
    kl = agree = count = nats = tokens = 0.0
    for index in range(3):
        for segment in sequences.segments[index].unique().tolist():
            chosen = sequences.segments[index] == segment
            ids = sequences.ids[index][chosen]
            expanded = [piece for one in ids.tolist() for piece in pieces[one]]
            last = np.cumsum([len(pieces[one]) for one in ids.tolist()]) - 1
            with torch.no_grad():
                p = torch.softmax(teacher(input_ids=ids[None]).logits[0].double(), 1)
                q = torch.log_softmax(student(input_ids=torch.tensor([expanded])).logits[0, :, :60].double(), 1)
            projected = torch.zeros(len(ids), 60, dtype=torch.double)
            for one in range(IDS):
                projected[:, pieces[one][0]] += p[:, one]
            for place in range(len(ids) - 1):
                row = projected[place]
                kl += float((row * (row.log() - q[last[place]])).sum())
                agree += float(row.argmax() == q[last[place]].argmax())
                count += 1
            nats -= float(sum(q[place, expanded[place + 1]] for place in range(last[0], len(expanded) - 1)))
            tokens += len(expanded) - 1 - int(last[0])
    own = tallies[1]
    # The pieces of a segment's first token do not count, since its bytes do not: the teacher does not predict it.
    assert own.of("tokens").sum() == own.reliability[..., 0].sum() == tokens
    assert own.of("compared").sum() == count
    assert own.of("kl").sum() / count == pytest.approx(kl / count, abs=1e-6)
    assert own.of("top1").sum() == agree
    assert own.of("nats").sum() == pytest.approx(nats, rel=1e-5)


def test_slices_add_up_and_the_worst_passage_is_the_worst(pair: tuple[Any, Any], tmp_path: Path) -> None:
    tokenizer = make_tokenizer("bpe", 512)
    models = [make_model("llama", rows=len(tokenizer), layers=2, seed=seed) for seed in (1, 2)]
    loaded = [Loaded(model, tokenizer, VocabularyMap.identity(len(tokenizer)), 0) for model in models]
    sequences = tiny_sequences(6, 96, ids=500)
    bench = bench_with(InMemory(sequences), tmp_path, *loaded)
    result = metric("fidelity").measure(bench)
    for rows in result["slices"].values():
        positions = [entry["positions"] for entry in rows["student"]]
        assert sum(positions) == result["positions"] == int((sequences.targets != IGNORED).sum())
        mean = sum(n * entry["kl_to_teacher"] for n, entry in zip(positions, rows["student"], strict=True)) / sum(
            positions
        )
        assert mean == pytest.approx(result["models"]["student"]["kl_to_teacher"], rel=1e-9)
    means = [passage["mean_kl"] for passage in result["worst"]]
    assert means == sorted(means, reverse=True)
    assert means[-1] > result["models"]["student"]["kl_to_teacher"]
    for passage in result["worst"]:
        assert passage["mean_kl"] == pytest.approx(np.mean([token["kl"] for token in passage["tokens"]]), abs=1e-3)


def test_a_finished_measure_is_not_repeated_and_a_changed_input_is(
    pair: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer("bpe", 512)
    model = make_model("llama", rows=len(tokenizer), layers=1, seed=1)
    loaded = Loaded(model, tokenizer, VocabularyMap.identity(len(tokenizer)), 0)
    bench = bench_with(InMemory(tiny_sequences(2, 32, ids=500)), tmp_path, loaded, loaded)
    names = ("fidelity", "languages")
    done: list[str] = []
    measure = Metric.measure

    def spied(spec: Metric, on: Any) -> Any:
        if spec.name == "languages" and not done.count("killed"):
            done.append("killed")
            raise KeyboardInterrupt
        done.append(spec.name)
        return measure(spec, on)

    monkeypatch.setattr(Metric, "measure", spied)
    with pytest.raises(KeyboardInterrupt):
        do_measures(bench, names)
    first = do_measures(bench, names)
    assert done == ["fidelity", "killed", "languages"]
    assert do_measures(bench, names) == first
    assert done == ["fidelity", "killed", "languages"]
    bench.seed = 1
    do_measures(bench, names)
    assert done[3:] == ["fidelity", "languages"]


def test_text_is_read_a_sequence_at_a_time(tmp_path: Path) -> None:
    sequences = tiny_sequences(5, 24)
    sequences.save(tmp_path / "heldout.safetensors")
    read = HeldOut(tmp_path / "heldout.safetensors")
    assert (len(read), read.length, read.documents) == (5, 24, len(sequences.document_sources))
    row = read.row(3)
    assert torch.equal(row.ids[0], sequences.ids[3])
    assert torch.equal(row.targets[0], sequences.targets[3])


def test_calibration_of_known_answers() -> None:
    tally = Tally({"all": 1}, 2)
    groups = np.asarray([0, 0, 1, 1])
    # 0.8 sure and right three times of four: off by 0.05.
    tally.add_reliability(groups, np.full(4, 0.8), np.asarray([1.0, 1.0, 1.0, 0.0]))
    found = calibration(tally, Drawing(200, 0.95, 0))
    assert found["ece"] == pytest.approx(0.05)
    assert found["bins"] == [{"confidence": pytest.approx(0.8), "accuracy": 0.75, "share": 1.0}]
    low, high = found["ece_interval"]
    assert low <= found["ece"] <= high
    assert calibration(Tally({"all": 1}, 1), Drawing(200, 0.95, 0))["ece"] is None
    assert CONFIDENCE_BINS == 15


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" word", "word"), ("naïve", "word"), ("don't", "word"), ("слово", "word"), (" 3.14", "number"), ("42", "number"),
     (" ==", "code"), ("self_", "code"), ("()", "code"), (", ", "punctuation"), ("…", "punctuation"), ("\n    ", "whitespace"),
     ("", "other"), ("a1", "other"), ("\ufffd", "other")],
)  # fmt: skip
def test_token_classes(text: str, expected: str) -> None:
    assert class_of(text) == expected


@given(st.text(max_size=8))
def test_every_text_has_a_class(text: str) -> None:
    assert class_of(text) in CLASSES


@given(st.integers(2, 5000))
def test_positions_have_one_bin(length: int) -> None:
    edges = position_edges(length)
    assert edges[0] == 0
    assert edges == sorted(set(edges))
    assert len(position_labels(length)) == len(edges)
    assert position_labels(length)[-1].endswith(f"–{length - 1}")
    assert math.isclose(
        sum(len(range(*map(int, (a, b)))) for a, b in zip(edges, [*edges[1:], length], strict=True)), length
    )


def test_of_no_text_there_is_no_number_and_json_holds_it() -> None:
    empty = Tally({"all": 1}, 2)
    drawing = Drawing(100, 0.95, 0)
    found = headline(empty, drawing)
    assert {found[name] for name in MEASURES} == {None}
    kept = retention(empty, empty, drawing)
    assert kept["value"] is None
    json.dumps([found, kept], allow_nan=False)
    entry = {
        "name": "Nothing", "retention": {"student": kept}, "models": {"student": found, "teacher": found},
        "tokens_per_byte": {"student": 1.0, "teacher": 1.0},
    }  # fmt: skip
    (section,) = sections({"languages": {"qq": entry}, "interval": "95 %"})
    assert section.title == "Languages"
