"""Capture stores what the model says, whatever the batches, and goes on where it stopped."""

from __future__ import annotations

import pytest
import torch
from signals.cache_material import identity, sequences_of
from teachers.teacher_material import TableTeacher, local_teacher
from tiny_models import make_model

from stillroom.core.errors import OutOfMemory, TeacherError
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import Sequences
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.recipe.capture import DenseCodec, HiddenCodec, ObservedCodec, ThresholdCodec
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.teachers import local
from stillroom.teachers.capture import cache_identity, capture

TEXT = sequences_of(5, 24)


def captured(folder, model, codec=None, text=TEXT, temperature=1.0, batch=48, shard=48):
    writer = CacheWriter.open(folder, identity(codec or DenseCodec(), temperature=temperature))
    with Progress(quiet=True).task("capture", text.tokens) as task:
        capture(local_teacher(model), text, writer, temperature, batch, shard, task)
    return TeacherCache.open(folder)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_is_stored_is_what_the_model_says(tmp_path, family, temperature):
    model = make_model(family, rows=100, layers=2)
    cache = captured(tmp_path, model, temperature=temperature)
    with torch.no_grad():
        logits = model(input_ids=TEXT.ids, position_ids=TEXT.positions, use_cache=False).logits
    expected = torch.log_softmax(logits[TEXT.targets >= 0].float() / temperature, dim=1)
    assert torch.allclose(cache.read(TEXT.digests)[0].logprobs, expected, atol=2e-4)


def test_the_signal_does_not_depend_on_batches_or_shards(tmp_path):
    model = make_model("llama", rows=100, layers=2)
    codec = ThresholdCodec(tau=0.1)
    one = captured(tmp_path / "a", model, codec, batch=24, shard=24).read(TEXT.digests)[0]
    other = captured(tmp_path / "b", model, codec, batch=1000, shard=1000).read(TEXT.digests)[0]
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.weights, other.weights)


def test_an_interrupted_capture_goes_on(tmp_path, monkeypatch):
    model = make_model("llama", rows=100, layers=2)
    passes = []
    real = hidden_states

    def counting(model, ids, positions):
        passes.append(len(ids))
        if len(passes) == 3:
            raise KeyboardInterrupt
        return real(model, ids, positions)

    monkeypatch.setattr(local, "hidden_states", counting)
    with pytest.raises(KeyboardInterrupt):
        captured(tmp_path, model, batch=24, shard=24)
    assert len(TeacherCache.open(tmp_path).digests) == 2
    cache = captured(tmp_path, model, batch=24, shard=24)
    assert sum(passes[3:]) == 3
    assert len(cache.digests) == 5


def test_a_sequence_that_stands_twice_is_captured_once(tmp_path):
    fields = ("ids", "segments", "loss_mask", "documents", "token_bytes")
    twice = Sequences(*(torch.cat([getattr(TEXT, name)] * 2) for name in fields), TEXT.document_sources)
    cache = captured(tmp_path, make_model("llama", rows=100, layers=2), text=twice)
    assert sum(entry.sequences for entry in cache.manifest.shards) == 5


def test_batches_shrink_until_they_fit(tmp_path, monkeypatch):
    model = make_model("llama", rows=100, layers=2)
    real, asked = hidden_states, []

    def small(model, ids, positions):
        asked.append(len(ids))
        if len(ids) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(model, ids, positions)

    monkeypatch.setattr(local, "hidden_states", small)
    assert len(captured(tmp_path, model, batch=96).digests) == 5
    assert asked[:3] == [4, 2, 1]

    def never(*_):
        raise MemoryError

    monkeypatch.setattr(local, "hidden_states", never)
    with pytest.raises(OutOfMemory, match="one sequence of 24 tokens"):
        captured(tmp_path / "never", model)


def test_a_teacher_whose_output_is_not_finite_is_refused(tmp_path):
    model = make_model("llama", rows=100, layers=2)
    with torch.no_grad():
        model.base_model.norm.weight.fill_(float("inf"))
    with pytest.raises(TeacherError, match="sequence 0 is not finite"):
        captured(tmp_path, model)


def test_batches_are_whole_sequences():
    teacher = local_teacher(make_model("llama", rows=100, layers=2))
    assert teacher.batch_tokens(512) == 2048
    assert teacher.batch_tokens(3000) == 3000


@pytest.mark.parametrize("batch", [None, 24])
def test_a_teacher_without_weights_is_captured(tmp_path, batch):
    table = torch.log_softmax(torch.randn(100, 100, generator=torch.Generator().manual_seed(3)), dim=1)
    teacher = TableTeacher(table)
    writer = CacheWriter.open(tmp_path, cache_identity(teacher, DenseCodec(), 1.0, 0))
    with Progress(quiet=True).task("capture", TEXT.tokens) as task:
        capture(teacher, TEXT, writer, 1.0, batch, 48, task)
    found = TeacherCache.open(tmp_path)
    assert found.manifest.identity.teacher_digest == "2" * 64
    assert found.manifest.identity.vocabulary_size == 100
    assert torch.allclose(found.read(TEXT.digests)[0].logprobs, table[TEXT.ids[TEXT.targets >= 0]], atol=2e-4)


def test_a_teacher_without_distributions_is_refused(tmp_path):
    teacher = TableTeacher(torch.zeros(100, 100), capabilities=frozenset(("text_only", "generate")))
    writer = CacheWriter.open(tmp_path, cache_identity(teacher, DenseCodec(), 1.0, 0))
    task = Progress(quiet=True).task("capture", TEXT.tokens)
    with task as shown, pytest.raises(TeacherError, match="`capture` needs the teacher's whole distribution"):
        capture(teacher, TEXT, writer, 1.0, None, 48, shown)


@pytest.mark.parametrize("family", ["gemma2", "granite", "llama"])
def test_the_head_does_what_the_family_does_to_logits(family):
    model = make_model(family, rows=100, layers=2)
    with torch.no_grad():
        hidden = hidden_states(model, TEXT.ids, TEXT.positions)
        expected = model(input_ids=TEXT.ids, position_ids=TEXT.positions, use_cache=False).logits
        assert torch.allclose(logits_from_hidden(model, hidden), expected, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_hidden_states_give_the_distribution_of_the_live_pass(tmp_path, family):
    model = make_model(family, rows=100, layers=2).bfloat16()
    teacher = local_teacher(model)
    # One sequence at a time, both times: on a CPU without bfloat16, products differ with the size of a batch.
    live = {index: torch.cat(list(next(teacher.score(TEXT, [index]))[1])) for index in range(len(TEXT))}
    cache = captured(tmp_path / "16", model, HiddenCodec(), batch=1)
    for index, digest in enumerate(TEXT.digests):
        # bfloat16 is what the teacher computes in: the states, the products and so the logits are equal to the bit.
        assert torch.equal(cache.read([digest])[0].logprobs, torch.log_softmax(live[index], dim=1))
    small = captured(tmp_path / "8", model, HiddenCodec(bits=8)).read(TEXT.digests)[0].logprobs
    exact = torch.cat([torch.log_softmax(live[index], dim=1) for index in range(len(TEXT))])
    assert float((exact.exp() * (exact - small)).sum(1).mean()) < 0.02


def test_exact_lists_of_a_local_teacher(tmp_path):
    model = make_model("llama", rows=100, layers=2)
    read = captured(tmp_path / "observed", model, ObservedCodec(k=5)).read(TEXT.digests)[0]
    dense = captured(tmp_path / "dense", model).read(TEXT.digests)[0].logprobs
    assert torch.allclose(read.logprobs, dense.gather(1, read.ids), atol=1e-3)
    assert torch.allclose(read.rest, 1 - read.logprobs.exp().sum(1), atol=1e-3)


def test_hidden_states_need_a_model(tmp_path):
    teacher = TableTeacher(torch.randn(100, 100))
    writer = CacheWriter.open(tmp_path, cache_identity(teacher, HiddenCodec(), 1.0, 0))
    with Progress(quiet=True).task("capture", 1) as task, pytest.raises(TeacherError, match="codec `hidden` needs"):
        capture(teacher, TEXT, writer, 1.0, None, 48, task)
