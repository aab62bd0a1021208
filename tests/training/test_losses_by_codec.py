"""Every objective on what every codec gives, at extremes, against float64 and autograd.

Legend: N positions, V the teacher's ids, U the student's, E events.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stillroom.models.forward import Head
from stillroom.recipe.capture import CaptureConfig, Codec, DenseCodec, ObservedCodec, ThresholdCodec, TopKCodec
from stillroom.recipe.training import DistillConfig
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.registry import make_codec, signal_kind
from stillroom.signals.signal import CoarseSignal, DenseSignal, Signal, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.training.losses.chunks import chunk_losses
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective

NEVER = float("-inf")
FLOOR = math.log(1e-38)
OBJECTIVES = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation", "log_acceptance")
CODECS: dict[str, Codec] = {
    "dense": DenseCodec(),
    "threshold": ThresholdCodec(tau=0.5),
    "one entry": ThresholdCodec(tau=1.0),
    "top_k": TopKCodec(k=2),
    "top_k, all": TopKCodec(k=4096),
    "observed": ObservedCodec(k=1),
    "observed, all": ObservedCodec(k=4096),
}
EXACT = "exact"
"""What the codec `hidden` gives: log-probabilities that no floor holds up."""
PAIRS = [(name, EXACT) for name in OBJECTIVES] + [
    (name, codec)
    for name, codec in itertools.product(OBJECTIVES, CODECS)
    if signal_kind(CODECS[codec]).value not in ("sampled", "partial") or name == "forward_kl"
]
MAPS: dict[str, Callable[[int], VocabularyMap]] = {
    "full": VocabularyMap.identity,
    "trimmed": lambda ids: VocabularyMap.from_pieces(
        [[i] if i <= ids // 2 else [] if i % 5 == 3 else [i % (ids // 2)] for i in range(ids)], ids, ids // 2 + 1
    ),
    "one id": lambda ids: VocabularyMap.from_pieces([[0] if i % 3 else [] for i in range(ids)], 4, 1),
}


class Exact:
    """Keeps log-probabilities as they are."""

    def sample(self, probabilities: list[torch.Tensor], random: np.random.Generator) -> torch.Tensor:
        return torch.cat(probabilities).log()

    def learn(self, samples: list[torch.Tensor]) -> None:
        """Nothing."""

    def pack(self, sample: torch.Tensor) -> torch.Tensor:
        return sample

    def decode(self, records: list[torch.Tensor], counts: list[int]) -> DenseSignal:
        return DenseSignal(torch.cat(records))


def logits_of(
    kind: str, count: int, ids: int, generator: torch.Generator, never: torch.Tensor | None = None
) -> torch.Tensor:
    """[N, V] float32 logits of one of the extremes; ``never``, [V] bool: the ids that the student lacks altogether."""
    never = torch.zeros(ids, dtype=torch.bool) if never is None else never
    found = 2 * torch.randn(count, ids, generator=generator)
    sure = torch.arange(count)[:, None] % ids == torch.arange(ids)
    match kind:
        case "certain":
            return torch.where(sure, 0.0, NEVER)
        case "huge":
            return torch.where(torch.rand(found.shape, generator=generator) < 0.3, 1e4 * found.sign(), found)
        case "spike":
            return found + 60.0 * sure
        case "all ruled out":
            # Every id that the student has; where it has them all, there is no such teacher.
            return torch.where(never, 0.0, NEVER).expand(count, ids) if bool(never.any()) else found
        case "half ruled out":
            return torch.where(sure | (torch.arange(ids) % 2 == 0), found, NEVER)
    return found


def divergence(name: str, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The textbook's value of two rows of log-probabilities of events, [E] float64 each."""
    p, q = teacher.exp(), student.exp()
    taught, said = p > 0, q > 0
    if name == "total_variation":
        return 0.5 * (p - q).abs().sum()
    if name == "log_acceptance":
        least = torch.minimum(teacher, student)
        return -least[least > NEVER].logsumexp(0) if bool((least > NEVER).any()) else teacher.new_tensor(-FLOOR)
    if name == "forward_kl":
        return (p[taught] * (teacher[taught] - student[taught])).sum()
    if name == "reverse_kl":
        return (q[said] * (student[said] - teacher[said].clamp_min(FLOOR))).sum()
    middle = torch.log((p + q).clamp_min(1e-300) / 2)
    of_teacher = (p[taught] * (teacher[taught] - middle[taught])).sum()
    return 0.5 * (of_teacher + (q[said] * (student[said] - middle[said])).sum())


def expected_loss(name: str, signal: Signal, row: int, student: torch.Tensor) -> torch.Tensor:
    """The loss of one position by its definition; ``student`` are its log-probabilities, [U] float64."""
    if isinstance(signal, DenseSignal) and not bool((signal.logprobs[row] > NEVER).any()):
        return student.new_zeros(())
    if isinstance(signal, DenseSignal):
        return divergence(name, signal.logprobs[row].double(), student)
    if isinstance(signal, SparseSignal) and signal.unbiased:
        drawn = signal.weights[row] > 0
        return -(signal.weights[row][drawn].double() * student[signal.ids[row][drawn]]).sum()
    whole = signal.coarse() if isinstance(signal, SparseSignal) else signal
    assert isinstance(whole, CoarseSignal)
    listed = whole.listed[row]
    ids, rest = whole.ids[row][listed], whole.rest[row].double()
    assert len(set(ids.tolist())) == len(ids)
    others = [index for index in range(len(student)) if index not in ids.tolist()]
    teacher, events = whole.logprobs[row][listed].double(), student[ids]
    if not others:
        assert float(rest) == 0.0, "mass on others, where there are none"
        return divergence(name, teacher, events)
    teacher = torch.cat([teacher, rest.log()[None]])
    return divergence(name, teacher, torch.cat([events, student[others].logsumexp(0)[None]]))


def teaches_nothing(name: str, signal: Signal, used: int, count: int) -> bool:
    """Whether the teacher's own positions, all but the first and the last, have neither loss nor gradient."""
    logits = torch.randn(count + 2, used, generator=torch.Generator().manual_seed(3), requires_grad=True)
    loss = FusedLoss(make_objective(name), biased=True)
    found = loss(logits, Head(torch.eye(used)), torch.zeros(count + 2, dtype=torch.int64), signal, 1.0)
    found.value.backward()
    assert logits.grad is not None
    return bool((found.distances[1:-1].abs() < 1e-6).all()) and bool((logits.grad[1:-1].abs() < 1e-6).all())


@pytest.mark.parametrize("vocabulary", MAPS)
@pytest.mark.parametrize(("name", "codec"), PAIRS)
def test_loss_and_gradient_are_right_at_extremes(name: str, codec: str, vocabulary: str) -> None:
    generator = torch.Generator().manual_seed(7)
    kinds = ("plain", "certain", "huge", "spike", "half ruled out", "all ruled out")
    count, ids = 5, 9
    mapped = MAPS[vocabulary](ids)
    cases = list(itertools.product(kinds, ("plain", "huge", "spike")))
    weights = [((1.0, 0.0), (2.0, 0.3), (0.5, 0.0))[number % 3] for number in range(len(cases))]
    encoder: Any = Exact() if codec == EXACT else make_codec(CODECS[codec], ids)
    samples = []
    for number, (teacher, _) in enumerate(cases):
        probabilities = torch.softmax(
            logits_of(teacher, count, ids, generator, mapped.first < 0).double() / weights[number][0], 1
        ).float()
        samples.append(encoder.sample([probabilities], np.random.Generator(np.random.Philox(number))))
    encoder.learn(samples)
    for number, (teacher, student) in enumerate(cases):
        dtype = torch.bfloat16 if number % 4 == 3 else torch.float32
        said = encoder.decode([encoder.pack(samples[number])], [count])
        check(name, said, mapped, teacher, student, *weights[number], dtype, generator)


def check(
    name: str,
    said: Signal,
    mapped: VocabularyMap,
    teacher: str,
    student: str,
    temperature: float,
    share: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    chunk: int = 3,
) -> None:
    """One signal of N positions against one extreme student: loss and gradient are those of float64."""
    count, used = len(said), mapped.student_used
    # The first and the last position are inside an id that the student lacks: there the text teaches.
    speaks = torch.tensor([False, *[True] * count, False])
    targets = torch.randint(used, (count + 2,), generator=generator)
    source = BatchSource.__new__(BatchSource)
    source.vocabulary, source.exact = mapped, False
    signal = source._complete(said, targets, speaks)
    if teacher == "all ruled out" and bool((mapped.first < 0).any()):
        assert teaches_nothing(name, signal, used, count), f"{student}: what is ruled out teaches"
    # The hidden states are the logits: the matrix is one. Rows behind the student's ids are padding.
    logits = logits_of(student, count + 2, mapped.student_size, generator).to(dtype).requires_grad_()
    loss = FusedLoss(make_objective(name), share, temperature, used, chunk=chunk, biased=True)
    found = loss(logits, Head(torch.eye(mapped.student_size)), targets, signal, 1.0)
    found.value.backward()
    exact = logits.detach().double().requires_grad_()
    text = torch.nn.functional.cross_entropy(exact[:, :used], targets, reduction="none")
    scaled = torch.log_softmax(exact[:, :used] / temperature, 1)
    taught = sum((expected_loss(name, signal, row, scaled[row]) for row in range(1, count + 1)), exact.new_zeros(()))
    total = (1 - share) * (temperature**2 * taught + text[~speaks].sum()) + share * text.sum()
    total.backward()
    where = f"{teacher}, {student}, {dtype}"
    # What a float32's digit of a log-probability of 1 is, times the weight that the loss has.
    least = 2e-4 * max(1.0, temperature)
    assert float(found.value.detach()) == pytest.approx(float(total.detach()), rel=2e-5, abs=least), where
    assert logits.grad is not None
    assert exact.grad is not None
    if name in ("total_variation", "log_acceptance") and "huge" in (teacher, student):
        return  # equal probabilities: at such a corner rounding chooses the side
    # A log-probability of -1e4 is known to 1e-3 in float32.
    close = 5e-3 if dtype is torch.bfloat16 else 2e-3 if student == "huge" else 2e-5
    assert torch.allclose(logits.grad.double(), exact.grad, rtol=close, atol=close * max(1.0, temperature)), where


@settings(max_examples=60, deadline=None)
@given(
    pair=st.sampled_from(PAIRS),
    vocabulary=st.sampled_from(sorted(MAPS)),
    teacher=st.sampled_from(("plain", "certain", "huge", "spike", "half ruled out", "all ruled out")),
    student=st.sampled_from(("plain", "huge", "spike")),
    count=st.sampled_from((0, 1, 4)),
    ids=st.sampled_from((2, 3, 9)),
    temperature=st.sampled_from((0.01, 0.5, 1.0, 100.0)),
    share=st.sampled_from((0.0, 0.3, 1.0)),
    chunk=st.sampled_from((1, 2, 512)),
    seed=st.integers(0, 2**16),
)
def test_loss_and_gradient_are_right_at_any_size_and_temperature(
    pair: tuple[str, str],
    vocabulary: str,
    teacher: str,
    student: str,
    count: int,
    ids: int,
    temperature: float,
    share: float,
    chunk: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mapped = MAPS[vocabulary](ids)
    logits = logits_of(teacher, count, ids, generator, mapped.first < 0)
    encoder: Any = Exact() if pair[1] == EXACT else make_codec(CODECS[pair[1]], ids)
    drawn = encoder.sample(
        [torch.softmax(logits.double() / temperature, 1).float()], np.random.Generator(np.random.Philox(seed))
    )
    encoder.learn([drawn])
    said = encoder.decode([encoder.pack(drawn)], [count])
    check(pair[0], said, mapped, teacher, student, temperature, share, torch.float32, generator, chunk)


def test_fillers_that_the_student_rules_out_add_nothing() -> None:
    signal = SparseSignal(torch.tensor([[1, 0]]), torch.tensor([[1.0, 0.0]]))
    losses, gradient = make_objective("forward_kl").chunk(torch.tensor([[NEVER, 0.0, NEVER]]), signal)
    assert losses.tolist() == [0.0]
    assert gradient.tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("teacher", [NEVER, -1e4])
def test_a_chunk_that_the_teacher_rules_out_has_a_finite_loss(teacher: float) -> None:
    losses, derivatives = chunk_losses(torch.tensor([teacher, teacher]), torch.tensor([-3.0, NEVER]), 10.0)
    assert losses.tolist() == pytest.approx([-10 * math.log(1 - math.exp(-0.3)), 0.0], rel=1e-5)
    assert bool(torch.isfinite(derivatives).all())


@pytest.mark.parametrize("k", [1, 3])
def test_probabilities_of_a_list_with_little_mass_keep_their_digits(k: int) -> None:
    ids = 4096
    encoder = make_codec(TopKCodec(k=k), ids)
    uniform = torch.full((1, ids), 1 / ids)
    signal = encoder.decode([encoder.pack(encoder.sample([uniform], np.random.default_rng(0)))], [1])
    assert isinstance(signal, SparseSignal)
    listed, rest = signal.shares()
    assert torch.allclose(listed, torch.full((1, k), 1 / ids), rtol=2e-3)
    assert float(listed.sum() + rest) == pytest.approx(1.0)


@pytest.mark.parametrize("value", [math.inf, 1000.0, 1e-3])
def test_a_temperature_that_float32_cannot_compute_with_is_refused(value: float) -> None:
    for section in (DistillConfig, CaptureConfig):
        with pytest.raises(ValidationError, match="temperature"):
            section.model_validate({"temperature": value})
