"""The training step against its peers, paired and interleaved on the same model and batch.

    .venv/bin/python -m benchmarks.step [--quick] [--json FILE]

The quickstart's student (16 of SmolLM2-135M-Instruct's 30 layers, vocabulary cut to the text) on 4 sequences of 512 tokens, in
bfloat16 over float32 weights (float32 alone where the CPU only emulates bfloat16, as a run would choose), AdamW and
gradient clipping in every step. Peers: the plain transformers step
(`model(input_ids, labels)` under autocast), TRL's GKD trainer and Liger's chunked loss, the last two in `.venvs/trl`
(`python -m venv .venvs/trl && .venvs/trl/bin/pip install torch==2.13.0 trl liger-kernel`); without it their figures are null,
and `left_out` in the details has the reason. Utilisation counts the products of the model (causal pairs only in attention),
over the matrix-product rate measured between the rounds.

`busy_over_free` is what is left of our step's speed beside a program that computes on one core all the time: rounds with and
without it alternate. It says little on a machine that other programs use as well, so the load before is written beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import material, report
from benchmarks.budget import own_peak_bytes
from stillroom.core.memory import MemoryMeter
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.load import save_model
from stillroom.recipe.capture import ThresholdCodec
from stillroom.recipe.training import DistillConfig
from stillroom.signals.batches import Batch, BatchSource
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import DenseSignal
from stillroom.teachers.capture import cache_identity
from stillroom.teachers.local import LocalTeacher
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork
from stillroom.training.optimizer import clip_gradients, make_optimizer

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

LAYERS, LENGTH, BATCH = 16, 512, 4
TAU = 1 / 36
VOCABULARY, WIDTH, FEW, MANY = 151_936, 256, 1024, 16_384
PEER = Path(".venvs/trl/bin/python")
CONFIG = DistillConfig(learning_rate=1e-5)
BUSY = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
while True:
    pass
"""
"""Computes without pause until its standard input closes, as it does when the process that started it ends, however it ends."""


class Peer:
    """The process that makes the peers' steps."""

    def __init__(self, folder: Path) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [PEER, "benchmarks/teaching_peer.py", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=os.environ
            | {
                "OMP_NUM_THREADS": str(torch.get_num_threads()),
                "HF_HUB_OFFLINE": "1",
                "STEP_DTYPE": str(material.fastest()).removeprefix("torch."),
            },
        )

    def ask(self, words: str) -> dict[str, Any]:
        """The answer to a line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(words + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": f"the peer's process ended: {self._last_line()}"}

    def _last_line(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:500] if lines else "it said nothing"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._said.close()


@contextlib.contextmanager
def setting() -> Iterator[tuple[Any, Batch, Callable[[], Batch], Any, Sequences, Path]]:
    """The student, a batch with its cached signal, what decodes it again, a teacher of the student's ids, and a folder."""
    loaded = material.teacher(material.fastest())
    train, _ = material.corpus(loaded, LENGTH, 16 * LENGTH, LENGTH)
    student, vocabulary = material.student(loaded, LAYERS, train)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = LocalTeacher(loaded)
        identity = cache_identity(teacher, ThresholdCodec(tau=TAU), 1.0, 0)
        writer = CacheWriter.open(folder / "cache", identity)
        for start in range(0, len(train), BATCH):
            indices = list(range(start, start + BATCH))
            for index, scores in teacher.score(train, indices):
                writer.add(train.digests[index], scores)
        writer.flush()
        source = BatchSource(train, vocabulary, TeacherCache.open(folder / "cache"))
        batch = source.batch(list(range(BATCH)))
        same, _ = material.student(loaded, len(loaded.model.base_model.layers), train)
        same = material.as_dtype(same, material.fastest()).eval().requires_grad_(requires_grad=False)
        texts = material.renumbered(train, vocabulary)
        save_peer(folder, student, same, loaded.tokenizer, batch)
        yield student, batch, lambda: source.batch(list(range(BATCH))), same, texts, folder


def save_peer(folder: Path, student: Any, teacher: Any, tokenizer: Any, batch: Batch) -> None:
    """What the peers' process reads."""
    from safetensors.torch import save_file

    save_model(student, tokenizer, folder / "student")
    save_model(teacher, tokenizer, folder / "teacher")
    save_file({"ids": batch.ids.contiguous(), "labels": batch.ids.clone()}, folder / "batch.safetensors")


def stock_step(student: Any, batch: Batch) -> Callable[[], None]:
    """The plain step: transformers' own loss under autocast, AdamW, clipping."""
    model = copy.deepcopy(student)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=material.fastest() == torch.bfloat16):
            value = model(input_ids=batch.ids, labels=batch.ids).loss
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(student: Any, make: Callable[[], Batch], loss: FusedLoss) -> Callable[[], None]:
    """Our step as the training loop makes it; the batch is made in the step."""
    model = copy.deepcopy(student)
    network = LossNetwork(model, material.fastest())
    optimizer = make_optimizer(model, CONFIG)

    def step() -> None:
        batch = make()
        network(batch, loss, float(len(batch.targets))).value.backward()
        network.collect()
        clip_gradients(model, CONFIG.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        network.refresh()

    return step


def live(teacher: Any, batch: Batch) -> Callable[[], Batch]:
    """A batch whose dense signal the teacher makes at once."""

    @torch.inference_mode()
    def signal() -> torch.Tensor:
        hidden = hidden_states(teacher, batch.ids, batch.positions).flatten(0, 1)
        return torch.log_softmax(logits_from_hidden(teacher, hidden[batch.rows]), dim=1)

    return lambda: Batch(batch.ids, batch.positions, batch.rows, batch.targets, DenseSignal(signal()))


def matrix_rate() -> float:
    """Operations a second of products of the student's shapes and dtype, the median of a few."""
    left, right = (torch.randn(rows, 576, dtype=material.fastest()) for rows in (BATCH * LENGTH, 1536))
    rates = []
    for _ in range(12):
        begun = time.perf_counter()
        for _ in range(4):
            left @ right.T
        rates.append(4 * 2 * BATCH * LENGTH * 576 * 1536 / (time.perf_counter() - begun))
    return statistics.median(rates)


def model_operations(student: CausalModel, batch: Batch) -> float:
    """Operations of one step: 6 a weight of a matrix and token, 12 a width and attended pair in every layer."""
    config = student.config
    weights = sum(p.numel() for n, p in student.named_parameters() if p.ndim == 2 and "embed" not in n)
    weights += student.get_output_embeddings().weight.numel()
    pairs = int((batch.positions + 1).sum())
    width = config.num_attention_heads * config.head_dim
    return 6.0 * weights * batch.ids.numel() + 12.0 * config.num_hidden_layers * width * pairs


def loss_peak(positions: int) -> None:
    """In a process of its own: the fused loss on so many positions; prints the peak in bytes."""
    from stillroom.models.forward import Head
    from stillroom.signals.signal import SparseSignal

    hidden, matrix = (
        torch.randn(rows, WIDTH, dtype=material.fastest(), requires_grad=True) for rows in (positions, VOCABULARY)
    )
    signal = SparseSignal(torch.randint(VOCABULARY, (positions, 16)), torch.full((positions, 16), 1 / 16))
    FusedLoss(make_objective("forward_kl"))(hidden, Head(matrix), None, signal).value.backward()  # type: ignore[no-untyped-call]
    sys.stdout.write(str(own_peak_bytes()))


def loss_memory(quick: bool) -> tuple[float, dict[str, Any]]:
    """Growth of the peak from few to many positions, hidden states and gradients taken off; and the peers' growth."""
    peaks = {
        count: int(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.step", "--loss", str(count)],
                capture_output=True,
                check=True,
                text=True,
            ).stdout
        )
        for count in (FEW, MANY)
    }
    carried = (MANY - FEW) * (2 * WIDTH * material.fastest().itemsize + 16 * 12)
    details: dict[str, Any] = {"vocabulary": VOCABULARY, "width": WIDTH, "ours_peak_bytes": peaks}
    if PEER.is_file() and not quick:
        found = {}
        for count in (FEW, 4 * FEW):
            peer = Peer(Path())
            found[count] = peer.ask(f"loss {count}")
            peer.close()
        details["liger"] = found
    return float(peaks[MANY] - peaks[FEW] - carried), details


def measure(steps: dict[str, Callable[[], float]], rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of every step in interleaved rounds, after one round that does not count; and the matrix rates between."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    rates = []
    for number in range(rounds + 1):
        rates.append(matrix_rate())
        for name, step in steps.items():
            spent = step()
            if number:
                seconds[name].append(spent)
        sys.stderr.write(f"round {number} of {rounds}\n")
    return seconds, rates


def timed(step: Callable[[], None]) -> Callable[[], float]:
    """A step that returns its seconds."""

    def run() -> float:
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun

    return run


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps-only", action="store_true", help="leave the memory of the loss out")
    parser.add_argument("--loss", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loss:
        loss_peak(arguments.loss)
        return
    growth, memory = (None, None) if arguments.steps_only else loss_memory(arguments.quick)
    details: dict[str, Any] = {"loss_memory": memory}
    with setting() as (student, batch, decode, teacher, _, folder):
        fused = FusedLoss(make_objective("forward_kl"))
        steps = {
            "stock_cross_entropy": timed(stock_step(student, batch)),
            "ours_cross_entropy": timed(our_step(student, lambda: batch, FusedLoss(None))),
            "ours_cached": timed(our_step(student, decode, fused)),
            "ours_live_teacher": timed(our_step(student, live(teacher, batch), fused)),
        }
        peer = Peer(folder) if PEER.is_file() else None
        details["left_out"] = {} if peer else {"trl_gkd, liger": f"{PEER} is not there"}
        if peer is not None:
            for name, words in (("trl_gkd", "gkd"), ("liger", "liger")):
                first = peer.ask(words)
                if "error" in first:
                    details["left_out"][name] = first["error"]
                    sys.stderr.write(f"{name} is left out: {first['error']}\n")
                else:
                    steps[name] = lambda words=words, peer=peer: float(peer.ask(words)["seconds"])  # type: ignore[misc]
        peaks = {}
        for name, step in steps.items():
            if name.startswith(("stock", "ours")):
                with MemoryMeter() as meter:
                    before = meter.peak
                    step()
                peaks[name] = meter.peak - before
        seconds, rates = measure(steps, 3 if arguments.quick else 8)
        if peer is not None:
            peer.close()
        load = os.getloadavg()[0]
        busy, busy_seconds = busy_over_free(steps["ours_cached"], 2 if arguments.quick else 5)
        operations = model_operations(student, batch)
    tokens = BATCH * LENGTH
    rate = statistics.median(rates)
    decoding = decode_seconds(decode)
    details |= {
        "steps": {
            name: {
                "tokens_per_second": tokens / statistics.median(values),
                "flop_utilisation": operations / statistics.median(values) / rate,
                "peak_bytes_over_rest": peaks.get(name),
                "seconds": values,
            }
            for name, values in seconds.items()
        },
        "matrix_operations_per_second": rates,
        "operations_a_step": operations,
        "making_a_batch_seconds": decoding,
        "busy_core": {"seconds": busy_seconds, "load_before": load, "threads": torch.get_num_threads()},
        "processor": matrix_instructions(),
        "settings": {
            "dtype": str(material.fastest()),
            "layers": LAYERS,
            "tokens_a_step": tokens,
            "tau": TAU,
            "ignored": IGNORED,
        },
    }
    figures = {
        "cached_over_stock_cross_entropy": ratio(seconds, "stock_cross_entropy"),
        "cached_over_trl_gkd": ratio(seconds, "trl_gkd") if "trl_gkd" in seconds else None,
        "cached_over_liger": ratio(seconds, "liger") if "liger" in seconds else None,
        "flop_utilisation": operations / statistics.median(seconds["ours_cached"]) / rate,
        "busy_over_free": busy,
        "loss_memory_growth_bytes": growth,
        "decode_share_of_step": decoding / statistics.median(seconds["ours_cached"]),
    }
    sys.stderr.write(f"The processor has AMX: {'yes' if matrix_instructions()['amx_bf16'] else 'no'}\n")
    report.write(figures, details, arguments.json)


def ratio(seconds: dict[str, list[float]], peer: str) -> float:
    """Median over rounds of a peer's seconds over those of our step with a cached signal."""
    pairs = zip(seconds[peer], seconds["ours_cached"], strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


@contextlib.contextmanager
def busy_core() -> Iterator[None]:
    """While the body runs, a process of its own computes without pause on one core."""
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE) as process:
        try:
            yield
        finally:
            process.kill()


def busy_over_free(step: Callable[[], float], rounds: int) -> tuple[float, dict[str, list[float]]]:
    """Tokens per second of a step beside a busy core over those without: the median of pairs, and all seconds."""
    seconds: dict[str, list[float]] = {"free": [], "busy": []}
    for _ in range(rounds):
        seconds["free"].append(step())
        with busy_core():
            step()  # the scheduler takes a moment to share the cores out
            seconds["busy"].append(step())
    ratio = statistics.median(free / busy for free, busy in zip(seconds["free"], seconds["busy"], strict=True))
    return ratio, seconds


def matrix_instructions() -> dict[str, bool]:
    """What the processor has for products in bfloat16."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").is_file() else set()
    return {"amx_bf16": "amx_bf16" in flags, "avx512_bf16": "avx512_bf16" in flags}


def decode_seconds(decode: Callable[[], Batch]) -> float:
    """Seconds that making a batch takes: reading, decoding and projecting its signals."""
    spent = []
    for _ in range(10):
        begun = time.perf_counter()
        decode()
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
