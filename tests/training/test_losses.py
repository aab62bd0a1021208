"""Every fused loss equals the dense formula, and its gradient equals autograd's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stillroom.core.errors import RecipeError, SignalError, VocabularyMismatch
from stillroom.models.forward import Head
from stillroom.recipe.capture import CaptureConfig, DenseCodec, ThresholdCodec, TopKCodec
from stillroom.recipe.training import DistillConfig
from stillroom.signals.signal import DenseSignal, SignalKind, SparseSignal
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.objective import Objective
from stillroom.training.losses.registry import make_objective, objective_names, require_fit

NAMES = sorted(objective_names())
LINEAR = [name for name in NAMES if make_objective(name).linear]
TEXTBOOK = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation", "log_acceptance")
"""Objectives whose values are compared with the formulas below; the other tests hold for every objective."""


def dense_formula(name, student, teacher):
    """The textbook form of each objective on log-probabilities, summed over positions."""
    p, q = teacher.exp(), student.exp()
    if name == "forward_kl":
        return torch.where(p > 0, p * (teacher - student), 0.0).sum()
    if name == "reverse_kl":
        return (q * (student - teacher)).sum()
    if name == "jensen_shannon":
        middle = torch.log((p + q) / 2)
        return 0.5 * (p * (teacher - middle)).sum() + 0.5 * (q * (student - middle)).sum()
    if name == "log_acceptance":
        return -torch.minimum(p, q).sum(1).log().sum()
    assert name == "total_variation"
    return 0.5 * (p - q).abs().sum()


def plain_logits(hidden, matrix, head):
    logits = hidden @ matrix.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def relative(a, b):
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@settings(max_examples=60)
@given(
    name=st.sampled_from(TEXTBOOK),
    positions=st.integers(1, 23),
    chunk=st.integers(1, 30),
    temperature=st.sampled_from([1.0, 0.7, 2.0]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25]),
    softcap=st.sampled_from([None, 5.0]),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**16),
)
def test_gradients_equal_autograd(name, positions, chunk, temperature, share, bias, scale, softcap, padding, seed):
    torch.manual_seed(seed)
    rows, width = 37, 11
    leaves = [torch.randn(positions, width), torch.randn(rows + padding, width)]
    leaves += [torch.randn(rows + padding)] if bias else []
    teacher = torch.log_softmax(torch.randn(positions, rows) * 2, dim=1)
    targets = torch.randint(rows, (positions,))

    def autograd(dtype):
        hidden, matrix, *offset = made = [leaf.detach().to(dtype, copy=True).requires_grad_() for leaf in leaves]
        logits = plain_logits(hidden, matrix, Head(matrix, *(offset or [None]), scale, softcap))[:, :rows]
        student = torch.log_softmax(logits / temperature, 1)
        divergence = dense_formula(name, student, teacher.to(dtype))
        entropy = functional.cross_entropy(logits, targets, reduction="sum")
        value = ((1 - share) * temperature**2 * divergence + share * entropy) / positions
        value.backward()
        return float(value.detach()), [leaf.grad for leaf in made]

    value, plain = autograd(torch.float32)
    exact = autograd(torch.float64)[1]
    hidden, matrix, *offset = made = [leaf.clone().requires_grad_() for leaf in leaves]
    head = Head(matrix, *(offset or [None]), scale, softcap)
    loss = FusedLoss(make_objective(name), share, temperature, rows if padding else None, chunk)
    result = loss(hidden, head, targets, DenseSignal(teacher))
    result.value.backward()
    assert float(result.value.detach()) == pytest.approx(value, rel=1e-5, abs=1e-6)
    for ours, theirs, wanted in zip((leaf.grad for leaf in made), plain, exact, strict=True):
        if float(theirs.norm()) > 1e-4 and (own := relative(theirs, wanted)) > 2e-6:
            # A difference of nearly equal numbers: float32 has not got five digits of it, whoever computes it.
            assert relative(ours, wanted) <= 5 * own
        elif float(theirs.norm()) > 1e-4:
            assert relative(ours, theirs) <= 1e-5
        else:
            assert float((ours - theirs).abs().max()) <= 1e-6


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_the_losses(name, seed):
    """In float64, by central differences: whatever an objective says its loss is, its gradient belongs to it.

    A column is moved in all positions at once: no position's loss depends on another's logits.
    """
    generator = torch.Generator().manual_seed(seed)
    objective = make_objective(name)
    logits = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    signal = DenseSignal(torch.log_softmax(torch.randn(3, 7, generator=generator, dtype=torch.float64), 1))

    def losses(at):
        found = objective.chunk(torch.log_softmax(at, 1), signal)
        assert found[0].shape == (3,)
        assert found[1].shape == (3, 7)
        return found

    values, gradient = losses(logits)
    assert bool((values > 0).all())
    step = 1e-6
    for column in range(7):
        moved = torch.zeros_like(logits)
        moved[:, column] = step
        slope = (losses(logits + moved)[0] - losses(logits - moved)[0]) / (2 * step)
        assert torch.allclose(gradient[:, column], slope, atol=1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_objective_has_the_same_gradient_for_a_sparse_signal_that_says_everything(name):
    torch.manual_seed(6)
    logits, teacher = torch.randn(5, 11), torch.log_softmax(torch.randn(5, 11), 1)
    ids = torch.arange(11).repeat(5, 1)
    _, dense = make_objective(name).chunk(torch.log_softmax(logits, 1), DenseSignal(teacher))
    _, sparse = make_objective(name).chunk(torch.log_softmax(logits, 1), SparseSignal(ids, teacher.exp()))
    assert torch.allclose(dense, sparse, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_sparse_forward_kl_equals_the_dense_formula_on_the_scattered_weights(chunk):
    torch.manual_seed(1)
    hidden = torch.randn(20, 8, requires_grad=True)
    matrix = torch.randn(50, 8, requires_grad=True)
    ids = torch.randint(50, (20, 6))  # ids may stand twice
    weights = torch.rand(20, 6)
    weights[3] = 0.0
    result = FusedLoss(make_objective("forward_kl"), chunk=chunk)(
        hidden, Head(matrix), None, SparseSignal(ids, weights)
    )
    result.value.backward()
    fused = hidden.grad.clone(), matrix.grad.clone()
    hidden.grad = matrix.grad = None
    scattered = torch.zeros(20, 50).scatter_add_(1, ids, weights)
    expected = -(scattered * torch.log_softmax(hidden @ matrix.T, 1)).sum() / 20
    expected.backward()
    assert float(result.value) == pytest.approx(float(expected), rel=1e-6)
    assert relative(fused[0], hidden.grad) <= 1e-5
    assert relative(fused[1], matrix.grad) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_self_distillation_has_no_loss_and_no_gradient(name):
    torch.manual_seed(2)
    hidden = torch.randn(9, 8, requires_grad=True)
    matrix = torch.randn(40, 8, requires_grad=True)
    teacher = torch.log_softmax((hidden @ matrix.T).detach(), 1)
    result = FusedLoss(make_objective(name))(hidden, Head(matrix), None, DenseSignal(teacher))
    result.value.backward()
    assert abs(float(result.value)) <= 1e-6
    assert float(hidden.grad.abs().max()) <= 1e-6
    assert float(matrix.grad.abs().max()) <= 1e-6


def test_padding_rows_get_probability_zero_and_no_gradient():
    torch.manual_seed(3)
    hidden = torch.randn(5, 8, requires_grad=True)
    matrix = torch.randn(32, 8)
    matrix[20:] = 100 * hidden.detach()[0]  # a padding row that would win every time
    matrix.requires_grad_(True)
    targets = torch.randint(20, (5,))
    loss = FusedLoss(None, used=20)(hidden, Head(matrix), targets)
    loss.value.backward()
    expected = functional.cross_entropy(hidden.detach() @ matrix.detach()[:20].T, targets)
    assert float(loss.value) == pytest.approx(float(expected), rel=1e-6)
    assert float(matrix.grad[20:].abs().max()) == 0.0


def test_bfloat16_stays_within_its_own_rounding():
    torch.manual_seed(4)
    hidden, matrix = torch.randn(64, 32), torch.randn(200, 32) / 6
    ids, weights = torch.randint(200, (64, 8)), torch.full((64, 8), 1 / 8)
    values, grads = [], []
    for dtype in (torch.float32, torch.bfloat16):
        h = hidden.to(dtype).requires_grad_(True)
        m = matrix.clone().requires_grad_(True)
        result = FusedLoss(make_objective("forward_kl"), chunk=16)(h, Head(m), None, SparseSignal(ids, weights))
        result.value.backward()
        values.append(float(result.value))
        grads.append(m.grad)
    assert values[1] == pytest.approx(values[0], rel=5e-3)
    assert grads[1].dtype == torch.float32
    assert relative(grads[1], grads[0]) <= 2e-2


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LINEAR])
def test_objectives_that_are_not_linear_refuse_a_sparse_signal(name):
    signal = SparseSignal(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1))
    with pytest.raises(SignalError, match="not linear in the teacher's probabilities") as caught:
        FusedLoss(make_objective(name))(torch.randn(2, 4), Head(torch.randn(5, 4)), None, signal)
    assert "codec: {kind: dense}" in caught.value.todo


def test_a_signal_of_another_vocabulary_is_refused():
    with pytest.raises(VocabularyMismatch, match="names id 7, and the student has 5 ids"):
        FusedLoss(make_objective("forward_kl"))(
            torch.randn(1, 4), Head(torch.randn(5, 4)), None, SparseSignal(torch.tensor([[7]]), torch.ones(1, 1))
        )
    with pytest.raises(VocabularyMismatch, match="has 6 ids, and the student has 5"):
        FusedLoss(make_objective("reverse_kl"))(
            torch.randn(1, 4), Head(torch.randn(5, 4)), None, DenseSignal(torch.zeros(1, 6))
        )


def test_a_signal_of_another_length_is_refused():
    with pytest.raises(SignalError, match="2 positions and the hidden states have 3"):
        FusedLoss(make_objective("forward_kl"))(
            torch.randn(3, 4),
            Head(torch.randn(5, 4)),
            None,
            SparseSignal(torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)),
        )


def test_no_tensor_of_positions_by_vocabulary_exists():
    """The largest tensor that the loss makes is one chunk of logits, whatever the number of positions."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return out

    vocabulary, width, chunk = 3000, 4, 32
    for positions in (64, 1024):
        hidden = torch.randn(positions, width, requires_grad=True)
        matrix = torch.randn(vocabulary, width, requires_grad=True)
        ids = torch.randint(vocabulary, (positions, 5))
        signal = SparseSignal(ids, torch.full((positions, 5), 0.2))
        with Watch():
            FusedLoss(make_objective("forward_kl"), chunk=chunk)(hidden, Head(matrix), None, signal).value.backward()
        assert largest <= chunk * vocabulary * 4
    assert math.isfinite(float(hidden.grad.sum()))


@pytest.mark.parametrize("name", NAMES)
def test_where_the_text_is_certain_it_teaches_by_cross_entropy_at_temperature_one(name):
    """The value and the gradient are those of the formula, differentiated by autograd in float64."""
    torch.manual_seed(11)
    positions, rows, width, temperature, share = 9, 23, 6, 2.0, 0.25
    hidden = torch.randn(positions, width, requires_grad=True)
    matrix = torch.randn(rows, width, requires_grad=True)
    targets = torch.randint(rows, (positions,))
    certain = torch.arange(positions) % 3 == 1
    teacher = torch.log_softmax(torch.randn(positions, rows) * 2, 1)
    one_hot = torch.full((positions, rows), -math.inf).scatter_(1, targets[:, None], 0.0)
    signal = DenseSignal(torch.where(certain[:, None], one_hot, teacher), certain)
    result = FusedLoss(make_objective(name), share, temperature, None, 4)(hidden, Head(matrix), targets, signal)
    result.value.backward()
    exact, exact_matrix = (tensor.detach().double().requires_grad_(True) for tensor in (hidden, matrix))
    logits = exact @ exact_matrix.T
    cross_entropy = functional.cross_entropy(logits, targets, reduction="none")
    if name in TEXTBOOK:
        spoken = torch.log_softmax(logits[~certain] / temperature, 1)
        taught = temperature**2 * dense_formula(name, spoken, teacher[~certain].double())
        expected = (1 - share) * (taught + cross_entropy[certain].sum()) + share * cross_entropy.sum()
        (expected / positions).backward()
        assert float(result.value.detach()) == pytest.approx(float(expected.detach()) / positions, rel=1e-5)
        assert relative(hidden.grad.double(), exact.grad) <= 1e-5
        assert relative(matrix.grad.double(), exact_matrix.grad) <= 1e-5
    assert torch.allclose(result.distances[certain].double(), cross_entropy.detach()[certain], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_certain_position_needs_the_text(name):
    signal = DenseSignal(torch.zeros(2, 5), torch.tensor([True, False]))
    with pytest.raises(SignalError, match="needs the text's ids"):
        FusedLoss(make_objective(name))(torch.randn(2, 4), Head(torch.randn(5, 4)), None, signal)


@pytest.mark.parametrize("name", NAMES)
def test_an_id_that_the_teacher_rules_out_leaves_loss_and_gradient_finite(name):
    torch.manual_seed(12)
    logits = torch.randn(6, 9, dtype=torch.float64)
    teacher = torch.log_softmax(
        torch.randn(6, 9, dtype=torch.float64).masked_fill(torch.arange(9) % 4 == 2, -math.inf), 1
    )
    losses, gradient = make_objective(name).chunk(torch.log_softmax(logits, 1), DenseSignal(teacher))
    assert bool(torch.isfinite(losses).all())
    assert bool(torch.isfinite(gradient).all())
    assert float(losses.max()) < 100
    # A student that rules the same ids out, and is the teacher otherwise, has nothing to learn.
    losses, gradient = make_objective(name).chunk(teacher.clone(), DenseSignal(teacher))
    assert float(losses.abs().max()) <= 1e-9
    assert float(gradient.abs().max()) <= 1e-9


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_the_teacher_keeps_its_share_of_the_gradient_at_every_temperature(temperature):
    torch.manual_seed(0)
    hidden = torch.randn(256, 64, requires_grad=True)
    matrix = torch.randn(2000, 64) * 0.2
    teacher = torch.randn(256, 2000) * 2
    targets = torch.distributions.Categorical(logits=teacher).sample()

    def pull(objective, at):
        signal = DenseSignal(torch.log_softmax(teacher / at, 1)) if objective else None
        loss = FusedLoss(objective, 0.0, at)(hidden, Head(matrix), targets, signal)
        return float(torch.autograd.grad(loss.value, hidden)[0].norm())

    shares = [
        pull(make_objective("forward_kl"), at) / (pull(make_objective("forward_kl"), at) + pull(None, 1.0))
        for at in (1.0, temperature)
    ]
    # Without T² the share falls from 20 % to 5 % at T = 2 and to 1 % at T = 4.
    assert shares[1] == pytest.approx(shares[0], rel=0.25)


def partial_formula(student, teacher, ids):
    """KL of the events "each of these ids" and "any other", from whole distributions [C, V]."""
    listed = torch.zeros(teacher.shape, dtype=torch.bool).scatter_(1, ids, True)
    p, q = teacher.exp(), student.exp()
    rest, others = (torch.where(listed, 0.0, values).sum(1) for values in (p, q))
    return torch.where(listed, p * (teacher - student), 0.0).sum(1) + rest * (rest.log() - others.log())


@settings(max_examples=40)
@given(k=st.integers(1, 30), spread=st.floats(0.1, 6), seed=st.integers(0, 2**16))
def test_a_partial_signal_is_the_kl_of_the_kept_ids_and_all_others_as_one(k, spread, seed):
    torch.manual_seed(seed)
    logits = (spread * torch.randn(5, 31, dtype=torch.float64)).requires_grad_(True)
    teacher = torch.log_softmax(spread * torch.randn(5, 31, dtype=torch.float64), 1)
    weights, ids = teacher.exp().topk(k, dim=1)
    # Room that is not needed: weight 0 at an id that stands elsewhere, or nowhere.
    signal = SparseSignal(functional.pad(ids, (0, 2)), functional.pad(weights, (0, 2)), False, 1 - weights.sum(1))
    student = torch.log_softmax(logits, 1)
    losses, gradient = make_objective("forward_kl").chunk(student.detach().clone(), signal)
    expected = partial_formula(student, teacher, ids)
    expected.sum().backward()
    assert torch.allclose(losses, expected.detach(), atol=1e-9)
    assert torch.allclose(gradient, logits.grad, atol=1e-9)
    whole = (teacher.exp() * (teacher - student)).sum(1).detach()
    assert bool((losses <= whole + 1e-9).all())
    itself, still = make_objective("forward_kl").chunk(teacher.clone(), signal)
    assert float(itself.abs().max()) <= 1e-9
    assert float(still.abs().max()) <= 1e-9


class Linear(Objective):
    """An objective of another package that says nothing of partial signals."""

    name = "linear"
    linear = True

    def chunk(self, logprobs, signal):
        raise NotImplementedError


def test_a_biased_signal_is_refused_unless_it_is_asked_for():
    weights, ids = torch.rand(2, 9).softmax(1).topk(3, dim=1)
    signal = SparseSignal(ids, weights, unbiased=False)
    objective = make_objective("forward_kl")
    with pytest.raises(SignalError, match="is biased") as caught:
        objective.check(signal, 9)
    assert "`biased: true` in the recipe's section `distill`" in caught.value.todo
    with pytest.raises(SignalError, match="is biased"):
        FusedLoss(objective)(torch.randn(2, 4), Head(torch.randn(9, 4)), None, signal)
    objective.check(signal, 9, biased=True)
    FusedLoss(objective, biased=True)(torch.randn(2, 4), Head(torch.randn(9, 4)), None, signal)
    with pytest.raises(SignalError, match=r"`linear` cannot take a signal of the most probable ids alone") as caught:
        Linear().check(signal, 9, biased=True)
    assert "`codec: {kind: threshold}`" in caught.value.todo


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LINEAR])
@pytest.mark.parametrize("kind", [SignalKind.SAMPLED, SignalKind.PARTIAL])
def test_what_needs_the_whole_distribution_takes_nothing_less(name, kind):
    with pytest.raises(SignalError, match=f"`{name}` cannot take") as caught:
        make_objective(name).require(kind, biased=True)
    assert "codec: {kind: dense}" in caught.value.todo


@pytest.mark.parametrize(
    ("distill", "codec", "words"),
    [
        (
            {"objective": "reverse_kl"},
            ThresholdCodec(),
            r"`distill\.objective: reverse_kl` with `capture\.codec: \{kind: thr",
        ),
        (
            {"objective": "reverse_kl", "biased": True},
            TopKCodec(),
            "cannot take a signal of the most probable ids alone",
        ),
        ({}, TopKCodec(), r"`capture\.codec: \{kind: top_k\}`: A signal of the most probable ids alone is biased"),
        ({"temperature": 2.0}, DenseCodec(), r"`distill\.temperature` is 2 and `capture\.temperature` is 1"),
        ({"learning_rate": 1.0}, ThresholdCodec(), r"`distill\.learning_rate` is 1"),
        ({"learning_rate": 0.2, "weight_decay": 5}, ThresholdCodec(), r"is 0\.2 and `distill\.weight_decay` 5"),
        ({}, ThresholdCodec(), None),
        ({"biased": True}, TopKCodec(), None),
        ({"objective": "reverse_kl"}, DenseCodec(), None),
    ],
)
def test_a_recipe_whose_objective_does_not_fit_its_codec_is_refused(distill, codec, words):
    distill, capture = DistillConfig.model_validate(distill), CaptureConfig(codec=codec)
    if words is None:
        require_fit(distill, capture)
        return
    with pytest.raises(RecipeError, match=words):
        require_fit(distill, capture)
