"""The training loop: it learns, resumes to the bit, stops honestly, and keeps the best."""

from __future__ import annotations

import dataclasses
import math
import re
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from teachers.teacher_material import local_teacher
from tiny_models import make_model
from torch import nn

from stillroom.core.errors import CorpusError, EnvironmentProblem, TrainingDiverged
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.capture import DenseCodec, ObservedCodec, ThresholdCodec
from stillroom.recipe.student import ExistingStudent, FreshStudent, ShrinkStudent
from stillroom.recipe.training import DistillConfig, LoraConfig
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.training import compiled, loop
from stillroom.training.checkpoint import State, load_checkpoint, save_checkpoint, unique_tensors
from stillroom.training.lean import LeanAdamW
from stillroom.training.loop import Training
from stillroom.training.optimizer import OBSERVED_SHARE, clip_gradients, make_optimizer, set_rate
from stillroom.training.schedule import batch_order, learning_rate, stable_steps, warmup_steps
from stillroom.training.stage import output_share
from stillroom.training.sweep import table_rate

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


def test_the_optimizer_is_gone_before_the_best_weights_are_read(taught, tmp_path, monkeypatch):
    """Its averages are twice the weights, which are read beside the model's."""
    made, alive = [], []

    def making(*arguments):
        optimizer = make_optimizer(*arguments)
        made.append(weakref.ref(optimizer))
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", making)
    restore = Training.restore

    def restoring(training, path):
        alive.append([one() for one in made if one() is not None])
        alive.append([p for p in training.model.parameters() if p.grad is not None])
        restore(training, path)

    monkeypatch.setattr(Training, "restore", restoring)
    a_training(taught, tmp_path).run()
    assert len(made) == 1
    assert alive == [[], []]


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


def test_positions_that_teach_nothing_are_counted_in_its_steps(taught, tmp_path):
    training = a_training(taught, tmp_path, CONFIG.model_copy(update={"epochs": 1}), codec="dense")
    batch = training.train.batch
    training.train.batch = lambda rows: dataclasses.replace(batch(rows), silent=len(rows))
    training.run()
    assert training.silent == len(taught[0][0]) == 16


def test_nothing_to_train_on_is_refused(taught, tmp_path):
    texts, caches = taught
    training = a_training(([texts[0].take(0), texts[1]], caches), tmp_path)
    with pytest.raises(CorpusError, match="no training sequence"):
        training.run()


@pytest.mark.parametrize(
    "family", ["llama", "gemma"]
)  # with an output layer of its own, and with the embedding for one
def test_the_output_layer_takes_its_share_of_the_learning_rate(taught, tmp_path, family):
    moved = {}
    for share in (1.0, 0.1, 0.0):
        model = make_model(family, rows=ROWS, layers=2, seed=9)
        before = {name: held.detach().clone() for name, held in model.named_parameters()}
        output = {id(held) for held in model.get_output_embeddings().parameters()}
        training = dataclasses.replace(
            a_training(taught, tmp_path / f"{share}", CONFIG.model_copy(update={"epochs": 1}), model=model),
            output_share=share,
        )
        training.run()
        of_output, others = [], []
        for name, held in training.model.named_parameters():
            change = float((held.detach() - before[name]).norm())
            (of_output if id(held) in output else others).append(change)
        assert min(others) > 0
        moved[share] = sum(of_output)
    assert moved[0.0] == 0
    assert 0.02 < moved[0.1] / moved[1.0] < 0.3


def test_of_what_an_endpoint_lists_the_output_layer_learns_slowly():
    observed, dense = ObservedCodec(), DenseCodec()
    begun = ExistingStudent(name="student")
    own = ExistingStudent(name="student", tokenizer="own")
    fresh = FreshStudent(config={})
    for asked, student, codec, expected in (
        ("auto", begun, observed, OBSERVED_SHARE),
        ("auto", ShrinkStudent(layers=2), observed, OBSERVED_SHARE),
        ("auto", begun, dense, 1.0),
        ("auto", own, observed, 1.0),
        ("auto", fresh, observed, 1.0),
        (0.5, fresh, observed, 0.5),
        (0.0, begun, dense, 0.0),
    ):
        recipe: Any = SimpleNamespace(distill=DistillConfig(output_layer_rate=asked), student=student)
        assert output_share(recipe, codec) == expected
    adapted: Any = SimpleNamespace(distill=DistillConfig(lora=LoraConfig()), student=begun)
    assert output_share(adapted, observed) == 1.0
    with pytest.raises(ValueError, match="with `lora` the output layer is not trained"):
        DistillConfig(lora=LoraConfig(), output_layer_rate=0.5)


@pytest.mark.parametrize("optimizer_of", [make_optimizer, lambda *a: LeanAdamW(a[0], a[1], torch.bfloat16, *a[2:])])
def test_rates_of_the_groups_of_parameters(optimizer_of):
    model = make_model("llama", rows=ROWS, layers=2)
    optimizer = optimizer_of(model, CONFIG, 0.25)
    set_rate(optimizer, 0.5)
    rates = {id(held): group["lr"] for group in optimizer.param_groups for held in group["params"]}
    assert rates.keys() == {id(held) for held in model.parameters()}
    output = id(model.get_output_embeddings().weight)
    assert {rate for held, rate in rates.items() if held != output} == {0.5}
    assert rates[output] == 0.125
    assert len(optimizer_of(model, CONFIG).param_groups) == 2


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


def test_kls_of_a_checkpoint_from_before_the_students_entropy_was_counted_are_raised_once() -> None:
    before = State(step=3, best_value=0.5, best_kl=0.5, history=[{"step": 0, "kl": 1.0}, {"step": 3, "kl": 0.5}])
    for _ in range(2):
        before.count_lost(0.25, distill=True)
    assert before == State(
        step=3, best_value=0.75, best_kl=0.75, history=[{"step": 0, "kl": 1.25}, {"step": 3, "kl": 0.75}], lost=0.25
    )
    baseline = State(best_value=3.0, best_kl=0.5)
    baseline.count_lost(0.25, distill=False)
    assert (baseline.best_value, baseline.best_kl) == (3.0, 0.75)


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


def shares(most: float) -> st.SearchStrategy[float]:
    """Shares that a recipe takes: what float32 tells from 0."""
    return st.floats(0, most, width=32, allow_subnormal=False)


@given(st.integers(1, 500), st.sampled_from(["cosine", "linear", "constant", "wsd"]), shares(1), shares(1))
def test_learning_rates_rise_to_the_peak_and_fall_to_the_floor(steps, schedule, warmup, floor):
    config = DistillConfig(learning_rate=1.0, schedule=schedule, warmup_share=warmup, final_learning_rate_share=floor)
    rates = [learning_rate(config, step, steps, 1.0) for step in range(steps)]
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


def test_the_order_is_the_one_of_earlier_releases():
    # A run that goes on in another version, or in another number of processes, has to see the same batches.
    assert batch_order(7, 3, 2, 5) == [[4, 3, 6], [1, 5, 2], [0], [3, 1, 5], [6, 2, 0], [4]]


AUTO = CONFIG.model_copy(update={"learning_rate": "auto", "batch_tokens": LENGTH, "epochs": 40, "evaluate_every": 100})


def begun(taught, folder, config=AUTO, steps=12, event=None, **options):
    """A training that was stopped after so many steps, its events, and its weights then."""
    events, found = [], {}
    training = None

    def note(**values):
        events.append(values)
        if event is not None:
            event(**values)
        if values.get("step") == steps and "loss" in values:
            found.update(weights(training))
            raise KeyboardInterrupt

    training = a_training(taught, folder, config, event=note, **options)
    with pytest.raises(KeyboardInterrupt):
        training.run()
    return training, events, found


def test_a_sweep_chooses_the_rate_and_leaks_nothing(taught, tmp_path):
    swept, events, after = begun(taught, tmp_path / "auto")
    chosen = swept.chosen
    assert chosen.origin == "sweep"
    assert 0 < chosen.cost_share <= 0.05
    assert 3 <= len(chosen.points) <= 5
    told = next(event for event in events if event.get("event") == "learning_rate")
    assert told == {"event": "learning_rate", **chosen.record()}
    assert len([event for event in events if event.get("event") == "trial"]) == len(chosen.points)
    # The same run with that rate written into the recipe is the same to the bit.
    config = AUTO.model_copy(update={"learning_rate": chosen.rate})
    given, steps, theirs = begun(taught, tmp_path / "given", config)
    assert given.chosen.origin == "given"
    numbers = [event for event in events if event.get("event") not in ("learning_rate", "trial")]
    assert numbers == steps
    assert after
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in after.items())


@pytest.mark.parametrize("moment", ["first trial", "second trial", "a step"])
def test_a_kill_in_the_sweep_or_after_it_changes_nothing(taught, tmp_path, moment):
    config = AUTO.model_copy(update={"checkpoint_seconds": 0})
    whole, _, theirs = begun(taught, tmp_path / "whole", config)
    tried = []

    def interrupt(**values):
        if values.get("event") == "trial":
            tried.append(values)
        most = {"first trial": 1, "second trial": 2}.get(moment)
        if len(tried) == most or (moment == "a step" and values.get("step") == 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_training(taught, tmp_path / "cut", config, event=interrupt).run()
    again, events, found = begun(taught, tmp_path / "cut", config)
    assert again.chosen == whole.chosen
    trials = [event for event in events if event.get("event") == "trial"]
    assert len(trials) == len(whole.chosen.points) - len(tried), "what was tried is not tried again"
    assert found
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in found.items())


def test_the_baseline_is_swept_by_its_own_measure(taught, tmp_path):
    distilled, _, _ = begun(taught, tmp_path / "distill", steps=1)
    baseline, events, _ = begun(taught, tmp_path / "baseline", steps=1, distill=False)
    values = [value for _, value in baseline.chosen.points if value is not None]
    start = events[0]["cross_entropy"]
    assert min(abs(value - start) for value in values) < 1
    assert values != [value for _, value in distilled.chosen.points]


def test_a_short_run_takes_its_rate_from_the_table(taught, tmp_path):
    training = a_training(taught, tmp_path, AUTO.model_copy(update={"epochs": 1}))
    state = training.run()
    assert training.chosen.origin == "table"
    assert training.chosen.points == []
    assert training.chosen.rate == table_rate(64, state.history[0]["kl"])


def test_a_checkpoint_is_written_at_every_validation_with_its_best_weights(taught, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_seconds": 1e9, "evaluate_every": 2})
    cut = []

    def interrupt(**values):
        if values.get("step") == 7 and "loss" in values:
            cut.extend(path.name for path in sorted(tmp_path.iterdir()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        a_training(taught, tmp_path, config, event=interrupt).run()
    assert cut == ["best-0000006.safetensors", "step-0000006"]
    model = make_model("llama", rows=ROWS, layers=2)
    state = load_checkpoint(tmp_path, model, make_optimizer(model, config))
    assert (state.step, state.best_step) == (6, 6)
    best = load_file(tmp_path / "best-0000006.safetensors")
    assert all(torch.equal(tensor, best[name]) for name, tensor in unique_tensors(model).items())


def test_the_norm_of_the_gradient_and_the_share_of_clipped_steps_are_known(taught, tmp_path):
    events = []
    config = CONFIG.model_copy(update={"gradient_clip": 0.5})
    state = a_training(taught, tmp_path, config, event=lambda **values: events.append(values)).run()
    norms = [event["gradient_norm"] for event in events if "loss" in event]
    assert len(norms) == state.step
    assert state.clipped == sum(norm > 0.5 for norm in norms) > 0


def test_tokens_are_those_without_padding(taught, tmp_path):
    texts, caches = taught
    segments = texts[0].segments.clone()
    segments[3, 10:] = -1
    padded = dataclasses.replace(texts[0], segments=segments)
    training = a_training(
        ([padded, texts[1]], caches), tmp_path, CONFIG.model_copy(update={"epochs": 2}), distill=False
    )
    assert training.run().tokens == 2 * (16 * LENGTH - 6)


def test_the_message_of_a_divergence_names_the_rate_of_its_step(taught, tmp_path):
    config = CONFIG.model_copy(update={"learning_rate": 1e30, "gradient_clip": 1e30, "warmup_share": 0.5, "epochs": 10})
    with pytest.raises(TrainingDiverged) as error:
        a_training(taught, tmp_path, config).run()
    step, rate = re.search(r"at step (\d+), learning rate (\S+) \(largest: 1.00e\+30\)", str(error.value)).groups()
    assert float(rate) == pytest.approx(learning_rate(config, int(step) - 1, 40, 1e30), rel=1e-2)
    assert "3e+29" in error.value.todo


def test_compiling_without_a_compiler_is_refused_before_anything_is_spent(taught, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EnvironmentProblem, match=r"needs a C\+\+ compiler"):
        a_training(taught, tmp_path, CONFIG.model_copy(update={"compile": "on"})).run()
    assert list(tmp_path.iterdir()) == []


def test_compiled_layers_learn_the_same_and_are_compiled_once(taught, tmp_path, monkeypatch):
    """With rows of two lengths, on the fake GPU's CPU code: few graphs for all layers, and a resumed run to the bit."""
    graphs = []

    def counted(graph, inputs):
        graphs.append([tuple(value.shape) for value in inputs if hasattr(value, "shape")])
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(compiled, "BACKEND", counted)
    monkeypatch.setattr(loop, "MULTIPLE", 12)
    config = CONFIG.model_copy(update={"compile": "on", "epochs": 1})
    plain = []
    a_training(taught, tmp_path / "plain", CONFIG.model_copy(update={"epochs": 1}), event=losses_into(plain)).run()
    found = []
    training = a_training(taught, tmp_path / "whole", config, event=losses_into(found))
    training.run()
    assert found == pytest.approx(plain, rel=1e-4)
    whole_graphs = len(graphs)
    assert 0 < whole_graphs <= 8, "one set of pieces with gradients, one without, for all layers"

    class Killed(Exception):
        pass

    seen = []

    def dies(**values):
        losses_into(seen)(**values)
        if len(seen) == 2:
            raise Killed

    with pytest.raises(Killed):
        a_training(taught, tmp_path / "killed", config, event=dies).run()
    rest = []
    resumed = a_training(taught, tmp_path / "killed", config, event=losses_into(rest))
    resumed.run()
    assert rest == found[-len(rest) :]
    assert 0 < len(rest) < len(found)
    assert all(torch.equal(a, b) for a, b in zip(resumed.model.parameters(), training.model.parameters(), strict=True))
    torch._dynamo.reset()


def losses_into(kept):
    def event(**values):
        if "gradient_norm" in values:
            kept.append(values["loss"])

    return event


def test_padding_adds_no_target(taught):
    texts, caches = taught
    batch = BatchSource(texts[0], VocabularyMap.identity(ROWS), caches["threshold"]).batch([0, 3])
    padded = batch.padded(12)
    assert padded.ids.shape == (2, 24)
    assert torch.equal(padded.ids[:, :LENGTH], batch.ids)
    assert torch.equal(padded.ids.flatten()[padded.rows], batch.ids.flatten()[batch.rows])
    assert padded.positions[0].tolist() == [*range(16), *range(8)]
    assert batch.padded(8) is batch


@given(st.integers(10, 500), shares(0.25), st.floats(0.05, 0.6))
def test_wsd_stays_at_the_peak_and_falls_at_the_end(steps, warmup, decay):
    config = DistillConfig(schedule="wsd", warmup_share=warmup, decay_share=decay, final_learning_rate_share=0.0)
    rates = [learning_rate(config, step, steps, 1.0) for step in range(steps)]
    begin = stable_steps(config, steps)
    assert rates[warmup_steps(config, steps) : begin + 1] == [1.0] * (begin + 1 - warmup_steps(config, steps))
    assert rates[begin:] == sorted(rates[begin:], reverse=True)
    assert rates[-1] < 1 or begin == steps - 1
