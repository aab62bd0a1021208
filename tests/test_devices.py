"""Every stage's function on a GPU that is not there (:mod:`devices`): none of it stays on the CPU; it says the same."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from students.tiny_families import tiny, tiny_sequences
from teachers.teacher_material import local_teacher

from stillroom.core.progress import Progress
from stillroom.evaluation import speed
from stillroom.evaluation.answers import Speaker
from stillroom.evaluation.bench import Loaded
from stillroom.evaluation.fidelity import Contender, compare
from stillroom.evaluation.heldout import InMemory
from stillroom.evaluation.tally import Tally
from stillroom.models import documents
from stillroom.models.documents import documents_of
from stillroom.models.families.registry import family_of
from stillroom.planning import pilot
from stillroom.recipe.capture import DenseCodec, ThresholdCodec, TopKCodec
from stillroom.recipe.training import OBJECTIVES, DistillConfig, LoraConfig
from stillroom.signals.batches import Batch, BatchSource
from stillroom.signals.cache.codec import sampling_generator
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.threshold import Threshold
from stillroom.signals.cache.writer import CHUNK, CacheWriter
from stillroom.signals.device_draw import draw
from stillroom.signals.signal import CoarseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students import layerwise
from stillroom.students.importance import Sample
from stillroom.students.measured import Measured
from stillroom.students.shape import Anatomy
from stillroom.students.shrink import shrink
from stillroom.teachers.capture import capture
from stillroom.training.adapters import attach
from stillroom.training.loop import Training
from stillroom.training.optimizer import make_optimizer
from tools.gpu.device import Device, DeviceMismatch, There, move

KINDS = ("cuda:0", "mps:0")
IDS = 96


@pytest.fixture(params=KINDS)
def device(request):
    return Device(request.param)


def teacher_of(family="llama", seed=0):
    return tiny(family, seed=seed, dtype=torch.float32)


def identity(codec):
    return CacheIdentity(
        teacher_digest="0",
        tokenizer_digest="0",
        vocabulary_size=IDS,
        temperature=1.0,
        codec=codec,
        seed=0,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def once():
    """Gives what the CPU gives, computed for the first device that asks: ``once(key, compute)``."""
    known = {}

    def found(key, compute):
        if key not in known:
            known[key] = compute()
        return known[key]

    return found


def captured(model, text, folder, codec):
    writer = CacheWriter.open(folder, identity(codec))
    with Progress(quiet=True).task("x", total=1) as task:
        capture(local_teacher(model), text, writer, 1.0, 2 * text.length, 10**9, task)
    return TeacherCache.open(folder)


@pytest.mark.parametrize(
    "codec", [ThresholdCodec(tau=1 / 16), ThresholdCodec(tau=1 / 16, draws=2, head=3), DenseCodec(), TopKCodec(k=8)]
)
def test_capture(device, once, tmp_path, codec):
    text = tiny_sequences(4)
    expected = once(
        ("captured", codec), lambda: captured(teacher_of(), text, tmp_path / "here", codec).read(text.digests)[0]
    )
    with device:
        captured(move(teacher_of(), device), text, tmp_path / "there", codec)
    found = TeacherCache.open(tmp_path / "there").read(text.digests)[0]
    if isinstance(codec, DenseCodec):
        assert torch.allclose(found.logprobs, expected.logprobs, atol=1e-4)
    else:
        assert torch.equal(found.ids, expected.ids)
        assert torch.allclose(found.weights, expected.weights)


def cut(model, text, shape, family):
    sample = Sample.of(text, text.tokens)
    measured = Measured.of(model, family, sample, leave_one_out=True)
    return measured, shrink(model, family, shape, measured, True)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_shrink(device, once, family, monkeypatch):
    # On some CPUs the repair rounds, and nowhere else.
    monkeypatch.setattr(layerwise, "fast_bfloat16", lambda _: False)
    text = tiny_sequences(6)
    model = tiny(family, dtype=torch.float32)
    whole = Anatomy.of(model, family_of(model), 0).teacher
    for sizes in ({"layers": 4}, {"layers": 5, "channels": 32, "groups": 1, "hidden": 24}):
        shape = dataclasses.replace(whole, **sizes)
        measured, expected = once((family, shape), lambda shape=shape: cut(model, text, shape, family_of(model)))
        with device:
            there = move(copy.deepcopy(model), device)
            found_measured, found = cut(there, text, shape, family_of(there))
        assert all(isinstance(parameter, There) for parameter in found.model.parameters())
        assert found.kept == expected.kept
        assert found.kl == pytest.approx(expected.kl, rel=1e-3)
        assert (found.healed_kl is None) == (expected.healed_kl is None)
        assert found.best_kl == pytest.approx(expected.best_kl, rel=1e-3)
        assert found_measured.influence == pytest.approx(measured.influence, rel=1e-4)
        assert found_measured.leave_one_out == pytest.approx(measured.leave_one_out, rel=1e-3, abs=1e-6)


def test_an_index_that_stays_on_the_cpu_is_seen(device):
    text = tiny_sequences(2)
    with device:
        model = move(teacher_of(), device)
        ids = text.ids[:1].to(device.where)
        assert model.get_input_embeddings()(ids).device == device.where
        with pytest.raises(DeviceMismatch, match="embedding"):
            model.get_input_embeddings()(text.ids[:1])
        with pytest.raises(DeviceMismatch, match="index_select"):
            model.get_input_embeddings().weight.index_select(0, torch.arange(3))


CONFIG = DistillConfig(
    batch_tokens=48,
    learning_rate=1e-3,
    precision="float32",
    checkpoint_seconds=0,
    evaluate_every=2,
    micro_batch_tokens=24,
)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    return {
        codec.kind: captured(teacher_of(), tiny_sequences(8), tmp_path_factory.mktemp(codec.kind), codec)
        for codec in (ThresholdCodec(tau=1 / 16), DenseCodec())
    }


def trained(folder, cache, config, device=None, vocabulary=None, distill=True):
    """A training's events, and the training; with a device, there."""
    folder.mkdir(parents=True, exist_ok=True)
    text = tiny_sequences(8)
    vocabulary = vocabulary or VocabularyMap.identity(IDS)
    model = teacher_of(seed=3).requires_grad_(True)
    if config.lora is not None:
        attach(model, config.lora, torch.float32, 0)
    events = []
    training = Training(
        title="distill",
        model=model if device is None else move(model, device),
        config=config,
        train=BatchSource(text, vocabulary, cache if distill else None),
        validation=BatchSource(text.take(2), vocabulary, cache),
        distill=distill,
        folder=folder,
        seed=0,
        device=torch.device("cpu") if device is None else device.where,
        used=vocabulary.student_used,
        progress=Progress(quiet=True),
        event=lambda **values: events.append(values),
    )
    training.run()
    return events, training


@pytest.fixture(scope="module")
def on_the_cpu(caches, once, tmp_path_factory):
    """A training's events there."""

    def found(cache, config, vocabulary=None):
        key = (cache, config.model_dump_json(), vocabulary is None)
        folder = tmp_path_factory.mktemp("here")
        return once(key, lambda: trained(folder, caches[cache], config, None, vocabulary)[0])

    return found


def steps_of(events):
    return [(event["loss"], event["gradient_norm"]) for event in events if "gradient_norm" in event]


SELDOM = {"checkpoint_seconds": 3600, "evaluate_every": 8}
"""Of a training whose steps are what is compared."""


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_with_every_objective(device, caches, on_the_cpu, tmp_path, objective):
    config = CONFIG.model_copy(update={"objective": objective, "cross_entropy_weight": 0.2} | SELDOM)
    expected = on_the_cpu("dense", config)
    with device:
        found, training = trained(tmp_path / "there", caches["dense"], config, device)
        assert all(isinstance(parameter, There) for parameter in training.model.parameters())
    assert [value for pair in steps_of(found) for value in pair] == pytest.approx(
        [value for pair in steps_of(expected) for value in pair], rel=2e-3
    )


def test_training_adapters(device, caches, on_the_cpu, tmp_path):
    config = CONFIG.model_copy(update={"lora": LoraConfig(rank=4)})
    expected = on_the_cpu("dense", config)
    with device:
        found, training = trained(tmp_path / "there", caches["dense"], config, device)
        assert all(isinstance(parameter, There) for parameter in training.model.parameters())
    assert [value for pair in steps_of(found) for value in pair] == pytest.approx(
        [value for pair in steps_of(expected) for value in pair], rel=2e-3
    )


def test_training_with_pieces_that_the_student_lacks(device, caches, on_the_cpu, tmp_path):
    """Where a teacher's id is two of the student's, the text teaches the second."""
    vocabulary = VocabularyMap.from_pieces([[i] if i < 90 else [i - 50, i - 60] for i in range(IDS)], IDS, 90)
    expected = on_the_cpu("threshold", CONFIG, vocabulary)
    with device:
        found, _ = trained(tmp_path / "there", caches["threshold"], CONFIG, device, vocabulary)
    assert [value for pair in steps_of(found) for value in pair] == pytest.approx(
        [value for pair in steps_of(expected) for value in pair], rel=2e-3
    )


def test_a_step_waits_for_the_device_at_most_twice(caches, tmp_path, monkeypatch):
    """Of two micro-batches; what is before the first step and at its end does not count."""
    from stillroom.training import loop

    device = Device("cuda:0")
    found = []
    step = loop._Stepper.__call__

    def counted(self, *arguments):
        device.waits.clear()
        device.places.clear()
        done = step(self, *arguments)
        found.append((device.waits.total(), dict(device.places)))
        return done

    monkeypatch.setattr(loop._Stepper, "__call__", counted)
    with device:
        trained(tmp_path, caches["threshold"], CONFIG, device)
    assert len(found) == 4
    assert all(0 < waits <= 2 for waits, _ in found), found


def emulated(query, key, value, cu_q, _cu_k, *_longest, scale, window_size, enable_gqa=False):
    """What torch's varlen_attn computes, document by document."""
    if enable_gqa:
        key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    assert key.shape[1] == query.shape[1]
    edges = cu_q.tolist()
    found = []
    for begin, end in itertools.pairwise(edges):
        index = torch.arange(end - begin)
        seen = index <= index[:, None]
        if window_size[0] >= 0:
            seen &= index >= index[:, None] - window_size[0]
        parts = [part[begin:end].transpose(0, 1) for part in (query, key, value)]
        found.append(
            torch.nn.functional.scaled_dot_product_attention(*parts, attn_mask=seen, scale=scale).transpose(0, 1)
        )
    return torch.cat(found)


@pytest.mark.parametrize("takes_groups", [True, False], ids=["torch 2.13", "torch 2.11"])
@pytest.mark.parametrize("window", [None, 3])
def test_attention_by_documents_is_that_with_the_mask(monkeypatch, takes_groups, window):
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6]])
    found = documents_of(positions)
    assert found.ends.tolist() == [0, 5, 8, 9, 16]
    assert found.longest == 7
    packed = documents._Packed(positions, found)
    query, key, value = torch.randn(2, 4, 8, 8), torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8, 8)
    expected = documents.attention(query, key, value, packed, 0.3, window)
    monkeypatch.setattr(documents, "flash", lambda query: True)
    monkeypatch.setattr(documents, "varlen", lambda: (emulated, takes_groups))
    assert torch.allclose(documents.attention(query, key, value, packed, 0.3, window), expected, atol=1e-6)


def test_the_flash_kernel_is_asked_for_what_it_takes():
    """Its own shape rules, by PyTorch's fake kernel on a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        query = torch.empty(2, 4, 64, 16, device="cuda", dtype=torch.bfloat16)
        key = torch.empty(2, 2, 64, 16, device="cuda", dtype=torch.bfloat16)
        packed = documents._Packed(
            torch.empty(2, 64, device="cuda", dtype=torch.int64),
            documents.Documents(torch.empty(5, device="cuda", dtype=torch.int32), 40),
        )
        kernel, _ = documents.varlen()
        assert kernel is not None
        before = documents.flash
        try:
            documents.flash = lambda query: True
            found = documents.attention(query, key, key, packed, 0.3, None)
        finally:
            documents.flash = before
    assert found.shape == (2, 64, 4, 16)
    assert found.device.type == "cuda"


@pytest.mark.parametrize(("draws", "head", "size"), [(1, 0, 200), (2, 3, 1000), (1, 0, 4096)])
def test_the_draw_where_the_logits_are_is_the_processor_s(draws, head, size):
    """The same random numbers give the same entries; a sum in another order may move a point, once in some thousands."""
    codec = Threshold(1 / 16, size, draws, head)
    scores = 3 * torch.randn(200, size, generator=torch.Generator().manual_seed(size))
    here = codec.sample((torch.softmax(part, 1) for part in torch.split(scores, CHUNK)), sampling_generator(0, "x"))
    with Device("cuda:0") as device:
        there = scores.to(device.where)
        found, entropy, positions = draw(codec, torch.split(there, 2 * CHUNK), sampling_generator(0, "x"))
    assert positions == 200
    expected = float(-(torch.softmax(scores.double(), 1) * torch.log_softmax(scores.double(), 1)).sum())
    assert entropy == pytest.approx(expected, rel=1e-5)

    def keys(sample):
        rows = np.repeat(np.arange(len(sample.counts)), sample.counts)
        return set(zip(rows.tolist(), sample.ids.tolist(), sample.levels.tolist(), strict=True))

    assert len(keys(found) & keys(here)) >= 0.995 * len(keys(here))
    assert abs(int(found.counts.sum()) - int(here.counts.sum())) <= 0.005 * len(here.ids)


def test_scores_that_are_not_finite_are_seen_where_they_are():
    scores = torch.randn(3, 200)
    for value in (torch.nan, torch.inf):
        broken = scores.clone()
        broken[1, 5] = value
        assert not math.isfinite(draw(Threshold(1 / 16, 200), [broken], sampling_generator(0, "x"))[1])
    ruled_out = scores.clone()
    ruled_out[1, 5] = -torch.inf
    assert math.isfinite(draw(Threshold(1 / 16, 200), [ruled_out], sampling_generator(0, "x"))[1])


def test_memory_that_runs_out_gives_no_sequence_twice(tmp_path, monkeypatch):
    """In the middle of a batch, after the first sequence was drawn; the rest goes on in smaller batches."""
    from stillroom.teachers import capture as module

    whole, calls = module.draw, []

    def failing(*arguments):
        calls.append(len(calls))
        if len(calls) == 3:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        return whole(*arguments)

    monkeypatch.setattr(module, "draw", failing)
    text, device = tiny_sequences(4), Device("cuda:0")
    with device:
        cache = captured(move(teacher_of(), device), text, tmp_path / "there", ThresholdCodec(tau=1 / 16))
    assert sorted(cache.digests) == sorted(set(text.digests))
    assert cache.read(text.digests)[0].ids.shape[0] == int((text.targets >= 0).sum())


def test_fidelity(device):
    """Evaluation's comparison with the teacher, of a student with other ids."""
    text = tiny_sequences(3)
    vocabulary = VocabularyMap.from_pieces([[i] if i < 90 else [i - 50, i - 60] for i in range(IDS)], IDS, 90)

    def compared(teacher, student):
        own, tally = (Tally({"all": 1}, 2) for _ in range(2))
        contender = Contender("student", student, vocabulary, tally)
        with Progress(quiet=True).task("x", total=1) as task:
            compare(teacher, own, [contender], InMemory(text), np.zeros(IDS, np.int64), task)
        return own.as_dict(), tally.as_dict()

    expected = compared(teacher_of(), teacher_of(seed=1))
    with device:
        found = compared(move(teacher_of(), device), move(teacher_of(seed=1), device))
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("kl", "nats", "top1", "tokens"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6)


LAYOUTS = {(8, "off"), (10, "on"), (12, "on"), (16, "off")}
"""Those of `make test`: every one once, with and without checkpoints of gradients; `make test-all` takes all."""


@pytest.mark.parametrize(
    ("state", "checkpointing"),
    [
        pytest.param(*layout, marks=[] if layout in LAYOUTS else pytest.mark.longer)
        for layout in (*itertools.product((16, 12, 8), ("on", "off")), (10, "on"))
    ],
)
def test_training_in_fewer_bytes(caches, tmp_path, state, checkpointing, monkeypatch):
    """A student learns in every layout, on the processor and on a GPU, and is float32 in the end."""
    monkeypatch.setattr("stillroom.training.lean.LEAST", 256)
    config = CONFIG.model_copy(
        update={
            "state": state,
            "gradient_checkpointing": checkpointing,
            "precision": "bfloat16",
            "epochs": 2,
            "evaluate_every": 8,
            "checkpoint_seconds": 3600,
        }
    )
    here, _ = trained(tmp_path / "here", caches["threshold"], config)
    device = Device("cuda:0")
    with device:
        found, training = trained(tmp_path / "there", caches["threshold"], config, device)
    assert all(parameter.dtype == torch.float32 for parameter in training.model.parameters())
    for events in (here, found):
        kls = [event["kl"] for event in events if event.get("event") == "validation"]
        assert kls[-1] < kls[0]


def test_a_training_goes_on_on_a_gpu(caches, tmp_path):
    """After it was stopped between two steps: fused AdamW takes the steps where the averages are."""
    config = CONFIG.model_copy(update={"checkpoint_seconds": 0})

    class Stopped(Exception):
        pass

    with Device("cuda:0") as device:
        whole, _ = trained(tmp_path / "whole", caches["threshold"], config, device)

    def stopped(step):
        text, vocabulary, events = tiny_sequences(8), VocabularyMap.identity(IDS), []

        def event(**values):
            events.append(values)
            if values.get("step") == step and "gradient_norm" in values:
                raise Stopped

        (tmp_path / "stopped").mkdir(exist_ok=True)
        with Device("cuda:0") as device:
            Training(
                title="distill",
                model=move(teacher_of(seed=3).requires_grad_(True), device),
                config=config,
                train=BatchSource(text, vocabulary, caches["threshold"]),
                validation=BatchSource(text.take(2), vocabulary, caches["threshold"]),
                distill=True,
                folder=tmp_path / "stopped",
                seed=0,
                device=device.where,
                used=vocabulary.student_used,
                progress=Progress(quiet=True),
                event=event,
            ).run()
        return events

    with pytest.raises(Stopped):
        stopped(3)
    rest = stopped(None)
    assert steps_of(rest) == steps_of(whole)[-len(steps_of(rest)) :]
    assert 0 < len(steps_of(rest)) < len(steps_of(whole))


def test_adamw_is_fused_on_a_gpu():
    with Device("cuda:0") as device:
        optimizer = make_optimizer(move(teacher_of().requires_grad_(True), device), CONFIG)
    assert optimizer.defaults["fused"]


def test_batches_for_a_gpu_are_pinned_and_made_ahead(caches, tmp_path, monkeypatch):
    """On another thread, while the step before is made."""
    threads = set()

    def seen(self):
        threads.add(threading.current_thread().name)
        return self.located()  # there is nothing here that memory could be pinned for

    monkeypatch.setattr(Batch, "pinned", seen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    text, vocabulary = tiny_sequences(8), VocabularyMap.identity(IDS)
    training = Training(
        title="distill",
        model=teacher_of(),
        config=CONFIG,
        train=BatchSource(text, vocabulary, caches["threshold"]),
        validation=BatchSource(text, vocabulary, caches["threshold"]),
        distill=True,
        folder=tmp_path,
        seed=0,
        device=torch.device("cuda:0"),
        used=None,
        progress=Progress(quiet=True),
        event=lambda **_: None,
    )
    batches = list(training._stream([[0], [1, 2], [3]]))
    assert [len(batch.ids) for batch in batches] == [1, 2, 1]
    assert all(batch.documents is not None for batch in batches)
    assert threads
    assert threading.main_thread().name not in threads


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_index_that_stays_on_the_cpu_fails_training(kind, caches, tmp_path, monkeypatch):
    whole = Batch.to
    monkeypatch.setattr(Batch, "to", lambda self, device: dataclasses.replace(whole(self, device), rows=self.rows))
    text = tiny_sequences(8)
    assert int((text.targets >= 0).sum()) < text.ids.numel()  # so that there is an index
    with Device(kind) as device, pytest.raises(DeviceMismatch, match="index_select"):
        trained(tmp_path, caches["threshold"], CONFIG, device)


def test_a_planted_number_that_is_read_without_carrying_it_over_fails_evaluation(device, monkeypatch):
    monkeypatch.setattr("stillroom.evaluation.fidelity._float", lambda values: values.double().numpy())
    with pytest.raises(DeviceMismatch, match=r"numpy|float64"):
        test_fidelity(device)


def test_evaluation_on_a_gpu_takes_sequences_together(monkeypatch):
    from stillroom.evaluation import fidelity

    seen, whole = [], fidelity.hidden_states

    def counted(model, ids, positions):
        seen.append(len(ids))
        return whole(model, ids, positions)

    monkeypatch.setattr(fidelity, "hidden_states", counted)
    test_fidelity(Device("cuda:0"))
    assert seen[:6] == [1] * 6
    assert seen[6:] == [3, 3]


class Letters:
    """A tokenizer whose tokens are letters."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text, add_special_tokens=False):
        assert not add_special_tokens
        return SimpleNamespace(input_ids=[3 + ord(letter) % (IDS - 3) for letter in text])


def test_answers_are_scored(device):
    """What tasks and text that is known by heart are measured by."""
    pairs = [("a context", " and what follows"), ("", "begun"), ("x", " y")]

    def scored(model):
        speaker = Speaker(Loaded(model, Letters(), VocabularyMap.identity(IDS), 0))
        own = [speaker.pair(*pair) for pair in pairs]
        return speaker.log_likelihoods(pairs), speaker.would_write(own), speaker.rolling("a text of its own")

    expected = scored(teacher_of())
    with device:
        found = scored(move(teacher_of(), device))
    assert [nats for nats, _ in found[0]] == pytest.approx([nats for nats, _ in expected[0]], rel=1e-4)
    assert found[1] == expected[1]
    assert found[2] == pytest.approx(expected[2], rel=1e-4)


def test_lists_of_an_endpoint_are_projected(device):
    """float64 sums: on a device without it they are made on the processor."""
    vocabulary = VocabularyMap.from_pieces([[i] if i < 90 else [i - 50, i - 60] for i in range(IDS)], IDS, 90)
    logprobs = torch.log_softmax(torch.randn(4, IDS, generator=torch.Generator().manual_seed(0)), dim=1)
    best = logprobs.topk(6, dim=1)
    signal = CoarseSignal(best.indices, best.values, 1 - best.values.exp().sum(1))
    expected = vocabulary.project_coarse(signal)
    with device:
        found = vocabulary.project_coarse(signal.to(device.where))
        assert found.ids.device == device.where
        ids, listed = found.ids.cpu(), found.logprobs.cpu()
    assert torch.equal(ids, expected.ids)
    assert torch.allclose(listed, expected.logprobs)


def test_clocks_are_read_when_the_gpu_is_done(monkeypatch):
    """A GPU computes while the processor goes on: what is timed then is how fast work is handed over."""
    order = []
    clock = itertools.count()
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: order.append("wait"))
    now = SimpleNamespace(perf_counter=lambda: order.append("clock") or float(next(clock)))
    monkeypatch.setattr(speed, "time", now)
    monkeypatch.setattr(pilot, "time", now)
    monkeypatch.setattr(pilot, "hidden_states", lambda *_: None)

    class Model:
        def parameters(self):
            return iter([SimpleNamespace(device=torch.device("cuda:0"))])

        def __call__(self, **_):
            return SimpleNamespace(logits=torch.zeros(1, 1, 5), past_key_values=None)

    with Device("cuda:0"):
        speed.measure_speed({"teacher": Model()}, {"teacher": torch.arange(4)}, 2)
        timed = order.count("clock")
        pilot._exact_rate(Model(), tiny_sequences(1))
    assert timed >= 3 * speed.REPETITIONS
    assert order.count("clock") == timed + 4
    assert all(order[place - 1] == "wait" for place, what in enumerate(order) if what == "clock")
