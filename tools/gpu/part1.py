"""Part 1: what needs no teacher. Right numbers first, then memory, then time, on random models of real shapes.

Run by part1.sh; `--out` is the folder for results.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.util
import itertools
import math
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillroom.models.forward import Head, hidden_states
from stillroom.recipe.training import OBJECTIVES, DistillConfig
from stillroom.signals.batches import Batch
from stillroom.signals.cache.threshold import BLOCK, Entries, Threshold
from stillroom.signals.signal import DenseSignal, SparseSignal
from stillroom.training.group import Group
from stillroom.training.loop import _Stepper
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork
from stillroom.training.optimizer import clip_gradients, make_optimizer
from stillroom.training.shard import shard
from tools.gpu.device import Device, move
from tools.gpu.harness import Check, Setting, run_checks

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

GRADIENT_BARS = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""Of the gradient's relative error; float32 gives about 1e-6, bfloat16 about 1e-2."""
APART = 0.25
"""Nats between teacher and student that no entry falls below: nearer ones change their sign by rounding alone, and the
gradients of total variation and of acceptance are made of signs."""
TAU = 1 / 24


def ceilings(at: Setting) -> None:
    """What the card can do at most: products in bfloat16, and copying."""
    size = 128 if at.tiny else 8192
    left, right = (torch.randn(size, size, device=at.device, dtype=torch.bfloat16) for _ in range(2))
    at.note("bfloat16 products, TFLOP/s", 2 * size**3 / at.seconds(lambda: left @ right, 10) / 1e12)
    source = torch.empty(1 << 16 if at.tiny else 2 << 30, dtype=torch.uint8, device=at.device)
    target = torch.empty_like(source)
    at.note("copying, TB/s read and written", 2 * source.numel() / at.seconds(lambda: target.copy_(source)) / 1e12)


def gradients(at: Setting) -> None:
    """Loss and gradients of every objective against its formula in float64 on the processor, on numbers new each time."""
    torch.backends.cuda.matmul.allow_tf32 = False
    seed = time.time_ns() % 2**31
    at.note("seed", seed)
    random = torch.Generator().manual_seed(seed)
    positions, width, rows = (48, 16, 200) if at.tiny else (192, 64, 1000)
    for name in OBJECTIVES:
        objective = make_objective(name)
        for kind in ("sparse", "dense") if objective.linear else ("dense",):
            hidden = torch.randn(positions, width, generator=random)
            matrix = torch.randn(rows, width, generator=random) / 4
            targets = torch.randint(rows, (positions,), generator=random)
            signal: SparseSignal | DenseSignal
            if kind == "sparse":
                signal = sparse(positions, rows, 12, random)
            else:
                signal = DenseSignal(apart(torch.randn(positions, rows, generator=random) * 2, hidden @ matrix.T))
            exact_hidden, exact_matrix = hidden.double().requires_grad_(), matrix.double().requires_grad_()
            exact = reference(name, exact_hidden @ exact_matrix.T, signal) / positions
            torch.autograd.backward(exact)
            for dtype, bar in GRADIENT_BARS.items():
                mine = hidden.detach().clone().to(at.device, dtype).requires_grad_()
                weight = matrix.detach().clone().to(at.device, dtype).requires_grad_()
                fused = FusedLoss(make_objective(name), chunk=positions // 3)
                found = fused(mine, Head(weight), targets.to(at.device), signal.to(at.device))
                torch.autograd.backward(found.value)
                worst = max(relative(mine.grad, exact_hidden.grad), relative(weight.grad, exact_matrix.grad))
                words = f"{name}, {kind}, {str(dtype).removeprefix('torch.')}"
                at.note(f"{words}: gradient, relative error", worst, most=bar)
                if kind == "dense":  # a sparse signal's loss lacks the teacher's entropy, by design
                    error = abs(float(found.value.detach()) / float(exact.detach()) - 1)
                    at.note(f"{words}: loss, relative error", error, most=bar)


def reference(name: str, logits: torch.Tensor, signal: SparseSignal | DenseSignal) -> torch.Tensor:
    """The summed loss by its formula, float64."""
    student = torch.log_softmax(logits, 1)
    if isinstance(signal, SparseSignal):
        return -(signal.weights.double() * student.gather(1, signal.ids)).sum()
    teacher = torch.log_softmax(signal.logprobs.double(), 1)
    if name == "forward_kl":
        return (teacher.exp() * (teacher - student)).sum()
    if name == "reverse_kl":
        return (student.exp() * (student - teacher)).sum()
    if name == "total_variation":
        return 0.5 * (teacher.exp() - student.exp()).abs().sum()
    if name == "log_acceptance":
        return -torch.minimum(teacher.exp(), student.exp()).sum(1).log().sum()
    if name == "jensen_shannon":
        mean = ((teacher.exp() + student.exp()) / 2).log()
        return 0.5 * ((teacher.exp() * (teacher - mean)).sum() + (student.exp() * (student - mean)).sum())
    raise NotImplementedError(f"no formula to compare {name} with: add it to tools/gpu/part1.py")


def apart(teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The teacher's logits as log-probabilities of which none is within APART nats of the student's; both (positions, rows)."""
    expected = torch.log_softmax(student, 1)
    while True:
        found = torch.log_softmax(teacher, 1)
        difference = found - expected
        near = difference.abs() < APART
        if not near.any():
            return found
        teacher = found + near * torch.where(difference < 0, -2 * APART, 2 * APART)


def relative(found: torch.Tensor | None, exact: torch.Tensor | None) -> float:
    """Norm of the difference over the norm of what is exact."""
    assert found is not None
    assert exact is not None
    return float((found.double().cpu() - exact).norm() / exact.norm())


def sparse(positions: int, rows: int, entries: int, random: torch.Generator) -> SparseSignal:
    """A random unbiased signal."""
    weights = torch.rand(positions, entries, generator=random)
    ids = torch.randint(rows, (positions, entries), generator=random)
    return SparseSignal(ids, weights / weights.sum(1, keepdim=True))


def threshold_draw(at: Setting) -> None:
    """The draw on the device: the host's points from the same numbers, and the distribution in the mean."""
    torch.use_deterministic_algorithms(False)
    random = torch.Generator().manual_seed(1)
    positions, rows = (64, 1024) if at.tiny else (2048, 49_152)
    probabilities = torch.softmax(torch.randn(positions, rows, generator=random) * 3, 1)
    tail = torch.where(probabilities >= TAU, 0.0, probabilities).view(positions, rows // BLOCK, BLOCK)
    offsets = torch.rand(positions, generator=random, dtype=torch.float64)
    codec = Threshold(TAU, rows)
    points: Callable[..., tuple[torch.Tensor, torch.Tensor]] = codec.tail
    host = points(tail, offsets)
    there_tail, there_offsets = tail.to(at.device), offsets.to(at.device)
    there = points(there_tail, there_offsets)
    at.note("tail: points on the host", len(host[0]), least=1)
    at.note("tail: share found on the device too", common(host, there), least=0.995)
    at.note("tail: microseconds a position", at.seconds(lambda: points(there_tail, there_offsets)) / positions * 1e6)
    try:
        draw: Any = importlib.import_module("stillroom.signals.device_draw").draw
    except ModuleNotFoundError:
        at.note("whole draw on the device", "this version of Stillroom has none")
        return
    logits = probabilities.log()
    here: Entries = codec.sample(iter(torch.split(torch.softmax(logits, 1), 64)), np.random.default_rng(2))
    there_logits = logits.to(at.device)
    drawn, entropy, count = draw(codec, [there_logits], np.random.default_rng(2))
    assert count == positions
    host_entries, there_entries = (
        (torch.from_numpy(np.repeat(np.arange(positions), one.counts)), torch.from_numpy(one.ids))
        for one in (here, drawn)
    )
    at.note("draw: share of the host's entries", common(host_entries, there_entries), least=0.995)
    exact = float(-(probabilities.double() * probabilities.double().log()).sum())
    at.note("draw: entropy, relative error", abs(entropy / exact - 1), most=1e-4)
    spent = at.seconds(lambda: draw(codec, [there_logits], np.random.default_rng(2)))
    at.note("draw: microseconds a position", spent / positions * 1e6)
    # The mean of many draws of one distribution: each id's error in units of the draw's own standard deviation at most.
    repeats = 128 if at.tiny else 4096
    one = logits[:1].expand(repeats, rows).contiguous().to(at.device)
    many = draw(codec, [one], np.random.default_rng(3))[0]
    mean = np.bincount(many.ids, weights=many.levels * (TAU / 2), minlength=rows) / repeats
    error = torch.from_numpy(mean) - probabilities[0].double()
    # An id below tau is worth tau with probability p / tau; one above is rounded to a multiple of tau / 2.
    exactly = probabilities[0].double()
    spread = torch.where(exactly < TAU, exactly * (TAU - exactly), TAU**2 / 16).sum() / repeats
    at.note("draw: squared error of the mean over what sampling allows", float((error**2).sum() / spread), most=2.5)


def common(host: tuple[torch.Tensor, torch.Tensor], there: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Points of both over the points of either."""
    first, second = (set(zip(rows.tolist(), ids.tolist(), strict=True)) for rows, ids in (host, there))
    return len(first & second) / max(1, len(first | second))


def loss_memory(at: Setting) -> None:
    """Peak and time of the fused loss by chunk, at Qwen's vocabulary: more positions cost no more than what enters."""
    rows, width, few, many = (4096, 32, 128, 512) if at.tiny else (151_936, 2560, 1024, 65_536)
    random = torch.Generator().manual_seed(2)
    matrix = torch.randn(rows, width, device=at.device, dtype=torch.bfloat16) / math.sqrt(width)
    for chunk in (64, 256) if at.tiny else (512, 2048, 8192):
        above = {}
        for positions in (few, many):
            leaf = matrix.clone().requires_grad_()
            hidden = torch.randn(positions, width, device=at.device, dtype=torch.bfloat16).requires_grad_()
            signal = sparse(positions, rows, 20, random).to(at.device)
            fused = FusedLoss(make_objective("forward_kl"), chunk=chunk)

            def step(fused: FusedLoss = fused, hidden: Any = hidden, leaf: Any = leaf, signal: Any = signal) -> None:
                hidden.grad = leaf.grad = None
                torch.autograd.backward(fused(hidden, Head(leaf), None, signal).value)

            base = at.memory()
            step()
            above[positions] = at.peak() - base
            at.note(f"chunk {chunk}, {positions} positions: MiB above what was there", above[positions] / 2**20)
            spent = at.seconds(step, 3, 1)
            at.note(f"chunk {chunk}, {positions} positions: microseconds a position", spent / positions * 1e6)
            del leaf, hidden, signal, step
        # Below a chunk's size the logits themselves still grow, so that only chunks up to `few` are held to the bar.
        growth = (above[many] - above[few] - (many - few) * width * 2 * 2) / 2**20
        name = f"chunk {chunk}: growth beyond hidden states and their gradients, MiB"
        at.note(name, growth, most=64.0 if chunk <= few else None, speed=True)


def attention(at: Setting) -> None:
    """Packed documents: each as if it were alone, and the kernel over documents against the mask, with gradients."""
    model = llama(at, (2, 64, 128, 4, 2, 512), 64) if at.tiny else llama(at, (4, 576, 1536, 9, 3, 4096), 512)
    model.requires_grad_(requires_grad=False).eval()
    length = 64 if at.tiny else 512
    ids, positions, cuts = packed_text(1, length, 512, torch.Generator().manual_seed(4))
    together = hidden_states(model, ids.to(at.device), positions.to(at.device))[0].double().cpu()
    alone = [
        hidden_states(model, ids[:, a:b].to(at.device), positions[:, a:b].to(at.device))[0].double().cpu()
        for a, b in itertools.pairwise(cuts)
    ]
    at.note("packed against one by one, float32, relative error", relative(together, torch.cat(alone)), most=1e-4)
    sizes = ((64, 2, 4, 2, 16),) if at.tiny else ((2048, 8, 32, 8, 128), (8192, 2, 32, 8, 128))
    for length, batch, heads, groups, width in sizes:
        kernels(at, length, batch, heads, groups, width)


def kernels(at: Setting, length: int, batch: int, heads: int, groups: int, width: int) -> None:
    """`varlen_attn` against SDPA with a mask; on the processor, which lacks it, SDPA document by document."""
    _, positions, cuts = packed_text(1, length, 512, torch.Generator().manual_seed(5))
    starts = positions[0].eq(0).cumsum(0).to(at.device)
    mask = (starts[:, None] == starts[None]) & torch.ones(length, length, dtype=torch.bool, device=at.device).tril()
    dtype = torch.bfloat16 if at.cuda else torch.float32
    query, key, value, weight = (
        torch.randn(batch, length, count, width, device=at.device, dtype=dtype)
        for count in (heads, groups, groups, heads)
    )
    inputs = [part.requires_grad_() for part in (query, key, value)]
    ends = torch.tensor([row * length + cut for row in range(batch) for cut in cuts[:-1]] + [batch * length])
    longest = int(ends.diff().max())
    ends = ends.to(at.device, torch.int32)

    def wide() -> tuple[torch.Tensor, torch.Tensor]:
        return (key.repeat_interleave(heads // groups, 2), value.repeat_interleave(heads // groups, 2))

    sdpa: Any = torch.nn.functional.scaled_dot_product_attention

    def masked() -> torch.Tensor:
        parts = [part.transpose(1, 2) for part in (query, *wide())]
        answer: torch.Tensor = sdpa(*parts, attn_mask=mask).transpose(1, 2)
        return answer

    def by_document() -> torch.Tensor:
        if at.cuda:
            kernel: Any = importlib.import_module("torch.nn.attention.varlen").varlen_attn
            flat = [part.flatten(0, 1) for part in (query, *wide())]
            answer: torch.Tensor = kernel(*flat, ends, ends, longest, longest, window_size=(-1, 0))
            return answer.view(batch, length, heads, width)
        pieces = []
        for a, b in itertools.pairwise(cuts):
            parts = [part[:, a:b].transpose(1, 2) for part in (query, *wide())]
            pieces.append(sdpa(*parts, is_causal=True).transpose(1, 2))
        return torch.cat(pieces, 1)

    found = []
    for kernel in (by_document, masked):
        out = kernel()
        found.append((out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)))
    for name, mine, theirs in zip(("values", "of queries", "of keys", "of values"), *found, strict=True):
        what = name if name == "values" else f"gradients {name}"
        at.note(f"{length} tokens: {what}, relative error", relative(mine, theirs.double().cpu()), most=2e-2)
    spent = [
        at.seconds(lambda kernel=kernel: torch.autograd.grad((kernel() * weight).sum(), inputs))  # type: ignore[misc]
        for kernel in (by_document, masked)
    ]
    at.note(f"{length} tokens: milliseconds by document", spent[0] * 1e3)
    at.note(f"{length} tokens: milliseconds with a mask", spent[1] * 1e3)


def packed_text(
    batch: int, length: int, rows: int, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Random ids and positions [B, L] of sequences that are packed alike, and where their documents begin and end."""
    inner = (torch.randperm(length - 1, generator=random)[:7] + 1).sort().values.tolist()
    cuts = [0, *inner, length]
    positions = torch.cat([torch.arange(b - a) for a, b in itertools.pairwise(cuts)])
    ids = torch.randint(rows, (batch, length), generator=random)
    return ids, positions.expand(batch, length).contiguous(), cuts


def packed_batch(batch: int, length: int, rows: int, listed: int, seed: int) -> Batch:
    """A training batch of packed text with a sparse signal of ``listed`` ids at each of its positions."""
    random = torch.Generator().manual_seed(seed)
    ids, positions, _ = packed_text(batch, length, rows, random)
    count = batch * length
    targets = torch.randint(rows, (count,), generator=random)
    return Batch(ids, positions, torch.arange(count), targets, sparse(count, rows, listed, random))


def llama(at: Setting, shape: tuple[int, int, int, int, int, int], length: int) -> CausalModel:
    """A random Llama of (layers, width, inner width, heads, groups, ids), float32, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, width, inner, heads, groups, rows = shape
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        tie_word_embeddings=True,
        max_position_embeddings=length,
    )
    torch.manual_seed(6)
    with torch.device(at.device):
        model: Any = LlamaForCausalLM(config)
    return model  # type: ignore[no-any-return]


def steps(
    at: Setting, shape: tuple[int, int, int, int, int, int], batch: int, length: int, bar: float, rounds: int
) -> None:
    """Whole training steps against transformers' own step: interleaved, on the same model and batch."""
    model = llama(at, shape, length)
    text = packed_batch(batch, length, shape[-1], 20, 7).to(at.device)
    spent: dict[str, list[float]] = {}
    makers: dict[str, Callable[[], Callable[[], float]]] = {"stock": lambda: stock_step(at, copy.deepcopy(model), text)}
    for chunk in (64,) if at.tiny else (512, 4096):
        makers[f"ours, chunk {chunk}"] = lambda chunk=chunk: our_step(copy.deepcopy(model), text, chunk)  # type: ignore[misc]
    # One at a time holds the memory of a step; rounds are interleaved by making each again.
    for number in range(1 if at.tiny else rounds):
        for name, make in makers.items():
            base = at.memory()
            step = make()
            losses = [step() for _ in range(1 if at.tiny else 3)]
            spent.setdefault(name, []).append(at.seconds(step, 5, 0))
            if number == 0:
                at.note(f"{name}: peak MiB above the model", (at.peak() - base) / 2**20)
                at.note(f"{name}: loss is finite", int(all(map(math.isfinite, losses))), least=1)
            at.note(f"{name}: tokens/s, round {number}", batch * length / spent[name][-1])
            del step
    layers, width = shape[:2]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    operations = 6 * parameters + 6 * layers * width * length
    best = {name: min(seconds) for name, seconds in spent.items()}
    ours = min(seconds for name, seconds in best.items() if name != "stock")
    at.note("ours: TFLOP/s of the model", operations * batch * length / ours / 1e12)
    at.note("step over stock", best["stock"] / ours, least=bar, speed=True)


def stock_step(at: Setting, model: Any, text: Batch) -> Callable[[], float]:
    """The loss of transformers under autocast, AdamW, clipping."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> float:
        with torch.autocast(at.device.type, torch.bfloat16):
            value = model(input_ids=text.ids, labels=text.ids).loss
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(value.detach())

    return step


def live_teacher_step(at: Setting, model: Any, text: Batch) -> Callable[[], float]:
    """What trainers with a live teacher do (TRL's GKD trainer with `beta: 0` among them): both models' whole logits, forward
    KL, autocast. The teacher has the student's shape.
    """
    teacher = copy.deepcopy(model).requires_grad_(False).to(torch.bfloat16).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> float:
        with torch.autocast(at.device.type, torch.bfloat16):
            with torch.no_grad():
                target = torch.log_softmax(teacher(input_ids=text.ids).logits.float(), -1)
            found = torch.log_softmax(model(input_ids=text.ids).logits.float(), -1)
        value = torch.nn.functional.kl_div(found, target, reduction="none", log_target=True).sum() / text.ids.numel()
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(value.detach())

    return step


def peers(at: Setting) -> None:
    """A step at 61 million parameters beside others' ways: with a live teacher, and with Liger's kernels where they travelled.

    Liger changes transformers for the whole process: it is the last here, and the process ends behind it.
    """
    shape, batch, length = ((2, 64, 128, 4, 2, 512), 2, 64) if at.tiny else ((16, 576, 1536, 9, 3, 7680), 32, 512)
    model = llama(at, shape, length)
    text = packed_batch(batch, length, shape[-1], 20, 7).to(at.device)

    def measured(name: str, make: Callable[[], Callable[[], float]]) -> float:
        base = at.memory()
        step = make()
        losses = [step() for _ in range(1 if at.tiny else 3)]
        spent = at.seconds(step, 5, 0)
        at.note(f"{name}: tokens/s", batch * length / spent)
        at.note(f"{name}: peak MiB above the model", (at.peak() - base) / 2**20)
        at.note(f"{name}: loss is finite", int(all(map(math.isfinite, losses))), least=1)
        return spent

    ours = measured("ours", lambda: our_step(copy.deepcopy(model), text, 64 if at.tiny else 4096))
    live = measured("a live teacher", lambda: live_teacher_step(at, copy.deepcopy(model), text))
    at.note("step over that with a live teacher", live / ours)
    patch = liger()
    if patch is None:
        at.note("Liger's kernels", "not on this machine")
        return

    def with_liger() -> Callable[[], float]:
        own = copy.deepcopy(model)
        patch(model=own)
        return stock_step(at, own, text)

    at.note("step over transformers' cross-entropy with Liger's kernels", measured("Liger", with_liger) / ours)


def liger() -> Callable[..., None] | None:
    """What puts Liger's kernels into a Llama; None where they are not, or where there is no card for them."""
    if importlib.util.find_spec("liger_kernel") is None or not torch.cuda.is_available():
        return None
    found: Callable[..., None] = importlib.import_module("liger_kernel.transformers").apply_liger_kernel_to_llama
    return found


def our_step(model: Any, text: Batch, chunk: int) -> Callable[[], float]:
    """Our step on a cached signal."""
    network = LossNetwork(model, torch.bfloat16)
    optimizer = make_optimizer(model, DistillConfig(learning_rate=1e-5))
    fused = FusedLoss(make_objective("forward_kl"), chunk=chunk)

    def step() -> float:
        value = network(text, fused, float(len(text.targets))).value
        value.backward()
        network.collect()
        clip_gradients(model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        network.refresh()
        return float(value.detach())

    return step


def small_steps(at: Setting) -> None:
    """At 61 million parameters."""
    if at.tiny:
        steps(at, (2, 64, 128, 4, 2, 512), 2, 64, 1.3, 1)
    else:
        steps(at, (16, 576, 1536, 9, 3, 7680), 32, 512, 1.3, 3)


def large_steps(at: Setting) -> None:
    """At 1.7 billion parameters."""
    if at.tiny:
        steps(at, (3, 64, 128, 4, 4, 512), 1, 64, 1.05, 1)
    else:
        steps(at, (24, 2048, 8192, 32, 32, 49_152), 8, 2048, 1.05, 2)


def synchronisations(at: Setting) -> None:
    """How often the processor waits for the card in a training step of two micro-batches; a dry run counts on a fake card."""
    shape = (2, 64, 128, 4, 2, 512)
    text = packed_batch(2, 64, shape[-1], 8, 8)
    fake = None if at.cuda else Device("cuda:0")
    with fake or contextlib.nullcontext():
        model: Any = llama(at, shape, 64)
        where = at.device
        if fake is not None:
            model, where = move(model, fake), fake.where
        else:
            text = text.located().pinned()
        config = DistillConfig(learning_rate=1e-4)
        network = LossNetwork(model, torch.float32)
        training: Any = SimpleNamespace(
            group=SimpleNamespace(many=False),
            device=where,
            model=model,
            config=config,
            _output_rows=shape[-1],
            chosen=None,
        )
        step = _Stepper(training, make_optimizer(model, config), network, FusedLoss(make_objective("forward_kl")))
        step([text, text], 1e-4, 0)
        if fake is not None:
            fake.waits.clear()
            step([text, text], 1e-4, 1)
            waits = fake.waits.total()
        else:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    step([text, text], 1e-4, 1)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            waits = sum("synchroniz" in str(one.message) for one in seen)
    at.note("waits of a step of two micro-batches", waits, least=1, most=2)


def alone_in_a_group(at: Setting) -> None:
    """FSDP2 with one process gives the plain step's losses."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory(prefix="gpu-group-") as folder:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if at.cuda else "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        try:
            shape = (2, 64, 128, 4, 2, 512)
            text = packed_batch(2, 64, shape[-1], 8, 9).to(at.device)
            model = llama(at, shape, 64)
            found = []
            for divided in (False, True):
                own = copy.deepcopy(model)
                network = LossNetwork(own, torch.float32)
                if divided:
                    shard(network, own, Group(0, 1, "full"), torch.float32)
                optimizer = make_optimizer(own, DistillConfig(learning_rate=1e-3))
                fused, losses = FusedLoss(make_objective("forward_kl")), []
                for _ in range(3):
                    value = network(text, fused, 128.0).value
                    value.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    losses.append(float(value.detach()))
                found.append(losses)
        finally:
            dist.destroy_process_group()
    worst = max(abs(a - b) for a, b in zip(*found, strict=True))
    at.note("losses with and without FSDP2, largest difference", worst, most=1e-6)
    at.note("loss falls", found[0][0] - found[0][-1], least=0)


CHECKS = (
    Check("ceilings", ceilings, 20),
    Check("gradients", gradients, 50),
    Check("threshold_draw", threshold_draw, 60),
    Check("loss_memory", loss_memory, 65),
    Check("attention", attention, 60),
    Check("steps_61M", small_steps, 70),
    Check("steps_1.7B", large_steps, 90),
    Check("peers", peers, 65),
    Check("synchronisations", synchronisations, 20),
    Check("group_of_one", alone_in_a_group, 25),
)


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    from transformers import LlamaForCausalLM  # noqa: F401  (once, before children are forked)

    return min(100, run_checks("part1", CHECKS, parser.parse_args().out))


if __name__ == "__main__":
    raise SystemExit(main())
