"""Every stage's function on a GPU that is not there (:mod:`devices`): nothing of it stays on the processor, and it says the same."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from devices import Device, DeviceMismatch, There, back, move
from students.tiny_families import tiny, tiny_sequences
from teachers.teacher_material import local_teacher

from stillroom.core.progress import Progress
from stillroom.models.families.registry import family_of
from stillroom.recipe.capture import DenseCodec, ThresholdCodec, TopKCodec
from stillroom.recipe.training import OBJECTIVES, DistillConfig
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students import importance
from stillroom.students.importance import Sample
from stillroom.students.measured import Measured
from stillroom.students.shape import Anatomy, Shape
from stillroom.students.shrink import shrink
from stillroom.teachers.capture import capture
from stillroom.training.loop import Training

KINDS = ("cuda:0", "mps:0")
IDS = 96


@pytest.fixture(params=KINDS)
def device(request):
    return Device(request.param)


def teacher_of(family="llama", seed=0):
    return tiny(family, seed=seed, dtype=torch.float32)


def identity(codec):
    return CacheIdentity(
        teacher_digest="0", tokenizer_digest="0", vocabulary_size=IDS, temperature=1.0, codec=codec, seed=0, dtype="float32"
    )


def captured(model, text, folder, codec):
    writer = CacheWriter.open(folder, identity(codec))
    with Progress(quiet=True).task("x", total=1) as task:
        capture(local_teacher(model), text, writer, 1.0, 2 * text.length, 10**9, task)
    return TeacherCache.open(folder)


@pytest.mark.parametrize("codec", [ThresholdCodec(tau=1 / 16), ThresholdCodec(tau=1 / 16, draws=2, head=3), DenseCodec(), TopKCodec(k=8)])
def test_capture(device, tmp_path, codec):
    text = tiny_sequences(4)
    expected = captured(teacher_of(), text, tmp_path / "here", codec).read(text.digests)[0]
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
def test_shrink(device, family):
    text = tiny_sequences(6)
    model = tiny(family, dtype=torch.float32)
    whole = Anatomy.of(model, family_of(model), 0).teacher
    for sizes in ({"layers": 4}, {"layers": 5, "channels": 32, "groups": 1, "hidden": 24}):
        shape = dataclasses.replace(whole, **sizes)
        measured, expected = cut(model, text, shape, family_of(model))
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


def test_an_index_that_stays_on_the_processor_is_seen(device):
    text = tiny_sequences(2)
    with device:
        model = move(teacher_of(), device)
        ids = text.ids[:1].to(device.where)
        assert model.get_input_embeddings()(ids).device == device.where
        with pytest.raises(DeviceMismatch, match="embedding"):
            model.get_input_embeddings()(text.ids[:1])
        with pytest.raises(DeviceMismatch, match="index_select"):
            model.get_input_embeddings().weight.index_select(0, torch.arange(3))


CONFIG = DistillConfig(batch_tokens=48, learning_rate=1e-3, precision="float32", checkpoint_seconds=0, evaluate_every=2, micro_batch_tokens=24)


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


def steps_of(events):
    return [(event["loss"], event["gradient_norm"]) for event in events if "gradient_norm" in event]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_with_every_objective(device, caches, tmp_path, objective):
    config = CONFIG.model_copy(update={"objective": objective, "cross_entropy_weight": 0.2})
    cache = caches["dense"]
    expected, _ = trained(tmp_path / "here", cache, config)
    with device:
        found, training = trained(tmp_path / "there", cache, config, device)
        assert all(isinstance(parameter, There) for parameter in training.model.parameters())
    assert [value for pair in steps_of(found) for value in pair] == pytest.approx(
        [value for pair in steps_of(expected) for value in pair], rel=2e-3
    )


def test_training_with_pieces_that_the_student_lacks(device, caches, tmp_path):
    """Where a teacher's id is two of the student's, the text teaches the second."""
    vocabulary = VocabularyMap.from_pieces([[i] if i < 90 else [i - 50, i - 60] for i in range(IDS)], IDS, 90)
    expected, _ = trained(tmp_path / "here", caches["threshold"], CONFIG, None, vocabulary)
    with device:
        found, _ = trained(tmp_path / "there", caches["threshold"], CONFIG, device, vocabulary)
    assert [value for pair in steps_of(found) for value in pair] == pytest.approx(
        [value for pair in steps_of(expected) for value in pair], rel=2e-3
    )


def test_a_step_waits_for_the_device_at_most_twice(caches, tmp_path):
    device = Device("cuda:0")
    config = CONFIG.model_copy(update={"checkpoint_seconds": 1e9, "evaluate_every": 10**6})
    with device:
        trained(tmp_path, caches["threshold"], config, device)
    inside = {place: count for place, count in device.places.items() if not place.startswith("training/checkpoint")}
    steps = [count for place, count in inside.items() if place.startswith("training/loop") and count >= 4]
    assert sum(steps) <= 2 * 4, inside
