"""The training loop: it learns, resumes to the bit, stops honestly, and keeps the best."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from teachers.teacher_material import local_teacher
from tiny_models import make_model
from torch import nn

from stillroom.core.errors import CorpusError, TrainingDiverged
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.capture import DenseCodec, ThresholdCodec
from stillroom.recipe.training import DistillConfig
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.training.checkpoint import State, load_checkpoint, save_checkpoint, unique_tensors
from stillroom.training.loop import Training
from stillroom.training.optimizer import clip_gradients, make_optimizer
from stillroom.training.schedule import batch_order, learning_rate

ROWS, LENGTH, CPU = 48, 16, torch.device("cpu")
CONFIG = DistillConfig(
    batch_tokens=4 * LENGTH, learning_rate=5e-3, precision="float32", checkpoint_seconds=0, evaluate_every=4, epochs=3
)


def a_text(count: int, seed: int) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    segments = torch.zeros(count, LENGTH, dtype=torch.int32)
    return Sequences(
        torch.randint(ROWS, (count, LENGTH), generator=generator),
        segments,
        torch.ones(count, LENGTH, dtype=torch.bool),
        segments,
        torch.ones(count, LENGTH, dtype=torch.int32),
        torch.zeros(1, dtype=torch.int32),
    )


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Training and validation texts, and caches of a tiny teacher's signals by codec."""
    teacher = make_model("llama", rows=ROWS, layers=2, seed=5)
    texts = [a_text(16, 0), a_text(4, 1)]
    caches = {}
    for name, codec in (("threshold", ThresholdCodec(tau=1 / 16)), ("dense", DenseCodec())):
        folder = tmp_path_factory.mktemp(name)
        identity = CacheIdentity(
            teacher_digest="0",
            tokenizer_digest="0",
            vocabulary_size=ROWS,
            temperature=1.0,
            codec=codec,
            seed=0,
            dtype="float32",
            sequence_length=LENGTH,
        )
        writer = CacheWriter.open(folder, identity)
        for text in texts:
            for index, scores in local_teacher(teacher).score(text, range(len(text))):
                writer.add(text.digests[index], scores)
        writer.flush()
        caches[name] = TeacherCache.open(folder)
    return texts, caches


def a_training(taught, folder, config=CONFIG, codec="threshold", distill=True, model=None, event=None):
    texts, caches = taught
    vocabulary = VocabularyMap.identity(ROWS)
    cache = caches[codec]
    folder.mkdir(parents=True, exist_ok=True)
    return Training(
        title="distill",
        model=model if model is not None else make_model("llama", rows=ROWS, layers=2, seed=9),
        config=config,
        train=BatchSource(texts[0], vocabulary, cache if distill else None),
        validation=BatchSource(texts[1], vocabulary, cache),
        distill=distill,
        folder=folder,
        seed=0,
        device=CPU,
        used=ROWS,
        progress=Progress(quiet=True),
        event=event or (lambda **_: None),
    )


def weights(training):
    return {name: tensor.clone() for name, tensor in unique_tensors(training.model).items()}


@pytest.mark.parametrize("codec", ["threshold", "dense"])
def test_a_student_comes_closer_to_its_teacher(taught, tmp_path, codec):
    state = a_training(taught, tmp_path, codec=codec).run()
    kls = [entry["kl"] for entry in state.history]
    assert state.step == 12
    assert [entry["step"] for entry in state.history] == [0, 4, 8, 12]
    assert state.best_kl == min(kls) < 0.8 * kls[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro", [None, 2 * LENGTH])
def test_a_resumed_run_has_the_same_losses_and_weights_to_the_bit(taught, tmp_path, precision, micro):
    config = CONFIG.model_copy(update={"precision": precision, "micro_batch_tokens": micro})
    whole = a_training(taught, tmp_path / "whole", config)
    expected = whole.run()
    steps = []

    def interrupt(**values):
        if "loss" in values:
            steps.append(values["step"])
            if values["step"] == 6:
                raise KeyboardInterrupt

    cut = a_training(taught, tmp_path / "cut", config, event=interrupt)
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again = a_training(taught, tmp_path / "cut", config)
    state = again.run()
    assert cut.losses[:5] + again.losses == whole.losses
    assert state.history == expected.history
    theirs = weights(whole)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(again).items())


def test_micro_batches_do_not_change_the_objective(taught, tmp_path):
    one = a_training(taught, tmp_path / "one")
    one.run()
    two = a_training(taught, tmp_path / "two", CONFIG.model_copy(update={"micro_batch_tokens": LENGTH}))
    two.run()
    assert two.losses == pytest.approx(one.losses, rel=1e-3)


def test_a_baseline_learns_from_the_text_alone(taught, tmp_path):
    events = []
    training = a_training(taught, tmp_path, distill=False, event=lambda **values: events.append(values))
    training.run()
    steps = [event for event in events if "loss" in event]
    assert all(event["kl"] is None for event in steps)
    assert steps[0]["loss"] == pytest.approx(steps[0]["cross_entropy"])
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_the_loss_that_is_reported_leaves_the_teachers_entropy_out(taught, tmp_path):
    events = {}
    for codec in ("threshold", "dense"):
        found = []
        a_training(
            taught, tmp_path / codec, codec=codec, event=lambda found=found, **values: found.append(values)
        ).run()
        events[codec] = [event["kl"] for event in found if "loss" in event]
    # The same quantity, once exact and once estimated from samples.
    assert sum(events["threshold"]) == pytest.approx(sum(events["dense"]), rel=0.1)


def test_a_loss_that_is_not_finite_stops_the_run(taught, tmp_path):
    model = make_model("llama", rows=ROWS, layers=2)
    with torch.no_grad():
        model.base_model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="the validation KL is nan"):
        a_training(taught, tmp_path, model=model).run()


def test_nothing_to_train_on_is_refused(taught, tmp_path):
    texts, caches = taught
    training = a_training(([texts[0].take(0), texts[1]], caches), tmp_path)
    with pytest.raises(CorpusError, match="no training sequence"):
        training.run()


def test_checkpoints_are_whole_or_not_there(tmp_path, monkeypatch):
    model = make_model("llama", rows=ROWS, layers=2)
    optimizer = make_optimizer(model, CONFIG)
    save_checkpoint(tmp_path, model, optimizer, State(step=1))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr("safetensors.torch.save_file", full)
        save_checkpoint(tmp_path, model, optimizer, State(step=2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    (tmp_path / "step-0000007").mkdir()  # without state.json, it is not one
    assert load_checkpoint(tmp_path, model, optimizer).step == 1
    save_checkpoint(tmp_path, model, optimizer, State(step=8))
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-0000008"]


def test_a_checkpoint_brings_everything_back(tmp_path):
    model = make_model("qwen2", rows=ROWS, layers=2)
    optimizer = make_optimizer(model, CONFIG)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    save_checkpoint(
        tmp_path, model, optimizer, State(step=3, best_kl=0.5, best_step=2, history=[{"step": 0, "kl": 1.0}])
    )
    random_after = torch.rand(3)
    other = make_model("qwen2", rows=ROWS, layers=2, seed=4)
    other_optimizer = make_optimizer(other, CONFIG)
    state = load_checkpoint(tmp_path, other, other_optimizer)
    assert state == State(step=3, best_kl=0.5, best_step=2, history=[{"step": 0, "kl": 1.0}])
    assert torch.equal(torch.rand(3), random_after)
    for (name, mine), (_, theirs) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(optimizer.state[mine][key], other_optimizer.state[theirs][key])


def test_vectors_do_not_decay():
    model = make_model("llama", rows=ROWS, layers=2)
    matrices, vectors = make_optimizer(model, CONFIG).param_groups
    assert matrices["weight_decay"] == CONFIG.weight_decay
    assert vectors["weight_decay"] == 0
    assert {p.ndim for p in vectors["params"]} == {1}
    count = sum(len(group["params"]) for group in (matrices, vectors))
    assert count == len(list(model.parameters()))


@given(st.floats(1e-3, 1e3))
def test_gradients_are_clipped_to_the_norm_and_small_ones_left_alone(scale):
    layer = nn.Linear(3, 2)
    gradients = [torch.full_like(parameter, scale) for parameter in layer.parameters()]
    for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
        parameter.grad = gradient.clone()
    norm = clip_gradients(layer, 1.0)
    assert norm == pytest.approx(scale * math.sqrt(8), rel=1e-5)
    after = torch.cat([parameter.grad.flatten() for parameter in layer.parameters()])
    if norm <= 1:
        assert torch.equal(after, torch.full((8,), scale))
    else:
        assert float(after.norm()) == pytest.approx(1.0, rel=1e-4)


@given(st.integers(1, 500), st.sampled_from(["cosine", "linear", "constant"]), st.floats(0, 1), st.floats(0, 1))
def test_learning_rates_rise_to_the_peak_and_fall_to_the_floor(steps, schedule, warmup, floor):
    config = DistillConfig(learning_rate=1.0, schedule=schedule, warmup_share=warmup, final_learning_rate_share=floor)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert all(0 < rate <= 1 + 1e-12 or floor == 0 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 3), st.integers(0, 5))
def test_every_pass_visits_every_sequence_once(count, batch, epochs, seed):
    order = batch_order(count, batch, epochs, seed)
    flat = [index for indices in order for index in indices]
    assert len(flat) == count * epochs
    for epoch in range(epochs):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert order == batch_order(count, batch, epochs, seed)
