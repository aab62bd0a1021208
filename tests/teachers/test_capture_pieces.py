"""Capture by pieces: whatever row they stand in, only those that are new, and the same after an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from signals.cache_material import identity
from teachers.teacher_material import TableTeacher, local_teacher
from tiny_models import make_model, tiny_model

from stillroom import pipeline
from stillroom.core.errors import SignalError, TeacherError
from stillroom.core.progress import Progress
from stillroom.corpus.cutting import cut, overlap_of
from stillroom.corpus.pieces import PieceList
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.corpus.tokens import Tokens
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.recipe.capture import Codec, DenseCodec, ThresholdCodec
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import DenseSignal, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers import capture as capturing
from stillroom.teachers.capture import capture

LENGTH = 32


def rows_of(*sizes: int, seed: int = 0) -> Sequences:
    """Rows of documents of these sizes with random ids; the same document for the same place and seed."""
    gathered = PieceList(LENGTH, overlap_of(LENGTH))
    for number, size in enumerate(sizes):
        generator = torch.Generator().manual_seed(100 * seed + number)
        ids = torch.randint(3, 100, (size,), generator=generator).numpy()
        learned = torch.rand(size, generator=generator).numpy() > 0.2
        gathered.add(cut(Tokens(ids, learned, ids % 5), LENGTH), 0)
    return Sequences.pack(gathered.finish())


def captured(folder: Path, text: Sequences, teacher: Any, codec: Codec, **options: Any) -> TeacherCache:
    writer = CacheWriter.open(folder, identity(codec))
    with Progress(quiet=True).task("capture", 1) as task:
        capture(teacher, text, writer, 1.0, options.pop("batch", 64), options.pop("shard", 64), task, **options)
    return TeacherCache.open(folder)


def dense(cache: TeacherCache, digests: list[str]) -> torch.Tensor:
    signal = cache.read(digests)[0]
    assert isinstance(signal, DenseSignal)
    return signal.logprobs


def test_a_piece_is_stored_as_if_it_stood_alone(tmp_path: Path) -> None:
    model = make_model("llama", rows=100, layers=2)
    text = rows_of(70, 5, 9, 12, 40, 7, 3)
    cache = captured(tmp_path, text, local_teacher(model), DenseCodec())
    assert sorted(cache.digests) == sorted(text.digests)
    for index, row in enumerate(text.addresses):
        for number, address in enumerate(row):
            chosen = text.segments[index] == number
            ids = text.ids[index][chosen][None]
            with torch.no_grad():
                hidden = hidden_states(model, ids, torch.arange(ids.shape[1])[None])
                logprobs = torch.log_softmax(logits_from_hidden(model, hidden)[0], dim=1)
            wanted = logprobs[text.targets[index][chosen] != IGNORED]
            assert torch.allclose(dense(cache, [address]), wanted, atol=2e-4)


def test_batches_read_the_signals_of_their_rows_pieces(tmp_path: Path) -> None:
    text = rows_of(70, 5, 9, 12, 40, 7, 3)
    table = torch.log_softmax(torch.randn(100, 100, generator=torch.Generator().manual_seed(3)), dim=1)
    cache = captured(tmp_path, text, TableTeacher(table), DenseCodec())
    source = BatchSource(text, VocabularyMap.identity(100), cache)
    for indices in ([0], [2, 0, 1]):
        batch = source.batch(indices)
        assert isinstance(batch.signal, DenseSignal)
        assert torch.allclose(batch.signal.logprobs, table[batch.ids.flatten()[batch.rows]], atol=1e-5)
        assert batch.entropy == pytest.approx(
            -float((batch.signal.logprobs.exp() * batch.signal.logprobs).sum()), rel=1e-4
        )


@pytest.mark.parametrize("codec", [DenseCodec(), ThresholdCodec(tau=0.1), ThresholdCodec(tau=0.1, draws=2)])
def test_a_signal_is_the_same_whichever_row_it_stood_in(tmp_path: Path, codec: Codec) -> None:
    table = torch.log_softmax(torch.randn(100, 100, generator=torch.Generator().manual_seed(3)), dim=1)
    few, many = rows_of(70, 5, 9), rows_of(70, 5, 9, 12, 40, 7, 3, 20, 31, 11)
    assert set(few.digests) < set(many.digests)
    one = captured(tmp_path / "few", few, TableTeacher(table), codec)
    other = captured(tmp_path / "many", many, TableTeacher(table), codec)
    for address in few.digests:
        mine, theirs = one.read([address])[0], other.read([address])[0]
        if isinstance(mine, SparseSignal):
            assert isinstance(theirs, SparseSignal)
            assert torch.equal(mine.ids, theirs.ids)
            assert torch.equal(mine.weights, theirs.weights)
        else:
            assert isinstance(theirs, DenseSignal)
            assert torch.equal(mine.logprobs, theirs.logprobs)
        assert one.entropy(address) == other.entropy(address)


def test_a_grown_corpus_captures_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = local_teacher(make_model("llama", rows=100, layers=2))
    few, many = rows_of(70, 5, 9, 12, 40), rows_of(70, 5, 9, 12, 40, 7, 3, 20, 31, 11)
    captured(tmp_path, few, teacher, ThresholdCodec(tau=0.1))
    added: list[str] = []
    real = CacheWriter.add
    monkeypatch.setattr(
        CacheWriter, "add", lambda self, digest, scores: added.append(digest) or real(self, digest, scores)
    )
    cache = captured(tmp_path, many, teacher, ThresholdCodec(tau=0.1))
    assert sorted(added) == sorted(set(many.digests) - set(few.digests))
    assert sum(entry.sequences for entry in cache.manifest.shards) == len(set(many.digests))
    assert set(cache.digests) == set(many.digests)


def test_a_capture_that_was_cut_off_packs_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = local_teacher(make_model("llama", rows=100, layers=2))
    old, text = rows_of(20, 9, 31), rows_of(20, 9, 31, 70, 5, 9, 12, 40, 7, 3, 20, 31, 11)
    for name in ("whole", "cut"):
        captured(tmp_path / name, old, teacher, DenseCodec())
    before = set(old.digests)
    whole = captured(tmp_path / "whole", text, teacher, DenseCodec(), batch=LENGTH, before=before)
    scored: list[list[str]] = []
    real = type(teacher).score

    def counting(self: Any, rows: Sequences, indices: list[int], temperature: float) -> Any:
        scored.append(rows.addresses[indices[0]])
        if len(scored) == 4:
            raise KeyboardInterrupt
        return real(self, rows, indices, temperature)

    monkeypatch.setattr(type(teacher), "score", counting)
    with pytest.raises(KeyboardInterrupt):
        captured(tmp_path / "cut", text, teacher, DenseCodec(), batch=LENGTH, shard=LENGTH, before=before)
    again = captured(tmp_path / "cut", text, teacher, DenseCodec(), batch=LENGTH, shard=LENGTH, before=before)
    assert scored[4] == scored[3], "it went on with the row that was lost"
    for address in text.digests:
        assert torch.equal(dense(whole, [address]), dense(again, [address]))


def test_a_teacher_that_scores_too_few_positions_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TableTeacher(torch.zeros(100, 100))
    monkeypatch.setattr(TableTeacher, "score", lambda *_: iter([(0, iter([torch.zeros(1, 100)]))]))
    with pytest.raises(TeacherError, match="fewer positions than have a target"):
        captured(tmp_path, rows_of(20, 9, 31), table, DenseCodec())
    assert capturing.CHUNK == 64


@pytest.fixture
def grown(small_recipe: Any, tmp_path: Path) -> Any:
    """A run that captured a small folder of text, and the same recipe when the folder has grown."""
    teacher = tiny_model("llama", tmp_path / "teacher", layers=2)
    folder = tmp_path / "text"
    folder.mkdir()

    def write(first: int, last: int) -> None:
        for number in range(first, last):
            words = " ".join(f"word {number * index}" for index in range(10 + number % 40))
            (folder / f"{number:02}.txt").write_text(f"Text {number}. {words}", encoding="utf-8")

    write(0, 40)
    settings = small_recipe(teacher)
    settings["corpus"] = {
        "sources": [{"kind": "text", "path": str(folder), "licence": "PSF-2.0"}],
        "sequence_length": 64,
    }

    def run(**sections: Any) -> Run:
        recipe = Recipe.model_validate(settings | sections)
        return pipeline.run(recipe, tmp_path / "runs", until="capture", quiet=True)

    return run, write, tmp_path


def held(made: Run) -> TeacherCache:
    return TeacherCache.open(made.recipe.capture.path or made.path / "capture" / "cache")


@pytest.mark.parametrize("shared", [False, True])
def test_the_stage_keeps_what_it_captured_when_the_corpus_grows(grown: Any, shared: bool) -> None:
    run, write, folder = grown
    capture_ = {"path": str(folder / "shared")} if shared else {}
    first = held(run(capture=capture_))
    before = {address: first.entropy(address) for address in first.digests}
    write(40, 60)
    # The folder's content is no part of a recipe: another key makes the corpus be read again.
    corpus = {
        "sources": [{"kind": "text", "path": str(folder / "text"), "licence": "CC0-1.0"}],
        "sequence_length": 64,
    }
    made = run(capture=capture_, corpus=corpus)
    record = made.stage("capture").record
    assert record is not None
    assert record["notes"]["reused"] >= 0.9 * len(before)
    after = held(made)
    assert set(before) <= set(after.digests)
    assert len(after.digests) > len(before)
    assert all(after.entropy(address) == value for address, value in before.items())
    # Another seed for training: another order of the text, the same signals.
    again = run(capture=capture_, corpus=corpus, seed=7)
    record = again.stage("capture").record
    assert record is not None
    assert record["notes"]["reused"] == len(set(after.digests) & _addresses(again))
    assert len(held(again).manifest.shards) == len(after.manifest.shards)


def _addresses(made: Run) -> set[str]:
    folder = made.path / "corpus"
    return {a for name in ("train", "validation") for a in Sequences.load(folder / f"{name}.safetensors").digests}


def test_another_identity_begins_a_run_s_own_cache_anew_and_a_shared_one_is_refused(grown: Any) -> None:
    run, _, folder = grown
    first = held(run())
    second = held(run(capture={"codec": {"kind": "top_k", "k": 4}}))
    assert set(first.digests) == set(second.digests)
    assert second.identity.codec != first.identity.codec
    third = held(run(capture={"codec": {"kind": "top_k", "k": 4}, "seed": 3}))
    assert third.identity.seed == 3
    run(capture={"path": str(folder / "shared")})
    with pytest.raises(SignalError, match="`seed` is 0 there and 1 here"):
        run(capture={"path": str(folder / "shared"), "seed": 1})


def test_a_teacher_whose_config_changes_is_captured_again(grown: Any) -> None:
    run, _, folder = grown
    shared = {"path": str(folder / "shared")}
    run(capture=shared)
    config = folder / "teacher" / "config.json"
    stored = json.loads(config.read_text())
    config.write_text(json.dumps(stored | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}))
    with pytest.raises(SignalError, match="`config_digest` is"):
        run(capture=shared)
