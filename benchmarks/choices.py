"""What training could do otherwise, at equal CPU seconds: averaged weights, other averaging constants, Muon, hidden states.

    .venv/bin/python -m benchmarks.choices [--run FOLDER] [--quick | --tiny] [--json FILE] [--work FILE] [--only TEXT]

Students: SmolLM2-135M-Instruct without half of its layers (`smollm2`), the same of a tiny Llama that was trained on the text
first (`llama`), and with `--run` that of a finished run of `recipes/quickstart.yaml`, pruned and repaired, on its text and
signals, in the precision that the run has (`quickstart`). Every choice has the same CPU seconds for its steps, whatever they do
in them, one thread, and three seeds (order of the text). Its learning rate is the best of three, a factor of two apart, by a
training of the first seed; its fall ends with the seconds. The measure is the validation KL to the teacher, nats per token, of
the weights that a choice ends with; validation costs no seconds.

`adamw` is what the product does. `beta2_99` has 0.99 in place of 0.95. `ema` ends with a running mean of the weights whose
horizon is a twentieth of the training, `lawa` with the plain mean of the last fifth (Kaddour 2022, arXiv 2209.14981); with
`_constant` the rate does not fall. `muon` is torch's own for matrices inside layers, at the scale of AdamW's updates (Liu et
al. 2025, arXiv 2502.16982), and AdamW elsewhere. `hidden` adds the squared distance of each layer's output to that of the
teacher's layer that it was, over the mean square of the latter, and pays for the teacher's pass.

`best_over_adamw` is the KL of the best other choice over AdamW's, the mean over seeds, of the student in which it gains least.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import report
from benchmarks.learning_rate import BATCH, SIZES, World, make_world, or_infinite
from benchmarks.material import evenly_spaced
from stillroom.core.files import read_json
from stillroom.corpus.mapped import MappedSequences, open_split
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import choose_dtype
from stillroom.models.families.registry import family_of
from stillroom.models.forward import hidden_states, output_head, way_of
from stillroom.models.load import load_student, load_teacher
from stillroom.recipe.training import DistillConfig
from stillroom.runs.run import Run
from stillroom.signals.batches import Batch, BatchSource
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.routed import Signals
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.several import open_signals
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork
from stillroom.training.optimizer import clip_gradients, parameter_groups
from stillroom.training.schedule import batch_order

SEEDS = (0, 1, 2)
RATES = {"quickstart": 2e-4, "smollm2": 5e-4, "llama": 2e-3}
"""The middle one of three, a factor of two apart; each of Muon's updates is scaled to those of AdamW."""
SECONDS = {"quickstart": 90.0, "smollm2": 45.0, "llama": 12.0}
QUICK_SECONDS = {"quickstart": 10.0, "smollm2": 10.0, "llama": 4.0}
"""CPU seconds of a training."""
WARM_UP, HORIZON, LAST = 0.1, 0.05, 0.2
"""Shares of a training: in which the rate rises, that a running mean looks back, and that a plain mean is of."""
FLOOR = 0.05
"""The rate at the end, over the largest."""


@dataclass(frozen=True)
class Choice:
    """One way to train.

    Attributes:
        name: What results call it.
        beta2: AdamW's second constant.
        mean: Which mean of the weights it ends with.
        falls: Whether the rate falls.
        muon: Whether Muon changes the matrices inside layers.
        hidden: Weight of the distance between hidden states.
    """

    name: str
    beta2: float = 0.95
    mean: str = ""
    falls: bool = True
    muon: bool = False
    hidden: float = 0.0


CHOICES = (
    Choice("adamw"),
    Choice("beta2_99", beta2=0.99),
    Choice("ema", mean="ema"),
    Choice("ema_constant", mean="ema", falls=False),
    Choice("lawa", mean="lawa"),
    Choice("lawa_constant", mean="lawa", falls=False),
    Choice("muon", muon=True),
    Choice("hidden", hidden=1.0),
    Choice("hidden_tenth", hidden=0.1),
)


@dataclass
class Optimizers:
    """One or two optimizers as one."""

    parts: list[torch.optim.Optimizer]

    def step(self, rate: float) -> None:
        """A step at this rate; gradients are forgotten."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)


def optimizers(model: Any, choice: Choice) -> Optimizers:
    """What a choice changes the weights with."""
    config = DistillConfig(learning_rate=1e-3, betas=(0.9, choice.beta2))
    groups, _ = parameter_groups(model, config)
    inside: set[int] = set()
    if choice.muon:
        layers = nn.ModuleList(family_of(model).layers(model))
        inside = {id(parameter) for parameter in layers.parameters() if parameter.ndim == 2}
    rest = [
        group | {"params": [parameter for parameter in group["params"] if id(parameter) not in inside]}
        for group in groups
    ]
    parts: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in rest if group["params"]], lr=1e-3, betas=config.betas, eps=1e-8, fused=True
        )
    ]
    if inside:
        matrices = [parameter for parameter in model.parameters() if id(parameter) in inside]
        parts.append(torch.optim.Muon(matrices, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return Optimizers(parts)


@dataclass
class Mean:
    """A mean of weights over a part of a training."""

    kind: str
    model: nn.Module
    kept: list[torch.Tensor] = field(default_factory=list)
    count: int = 0

    @torch.no_grad()
    def add(self, progress: float, share: float) -> None:
        """Take the weights after a step that was this share of the training and ended at ``progress``."""
        if not self.kind or (self.kind == "lawa" and progress < 1 - LAST):
            return
        weights = [parameter.detach() for parameter in self.model.parameters()]
        self.count += 1
        if not self.kept:
            self.kept = [weight.clone() for weight in weights]
            return
        new = 1 / self.count if self.kind == "lawa" else min(1.0, share / HORIZON)
        torch._foreach_lerp_(self.kept, weights, new)

    @torch.no_grad()
    def put(self) -> None:
        """Give the model the mean."""
        if self.kept:
            torch._foreach_copy_(list(self.model.parameters()), self.kept)


@contextlib.contextmanager
def outputs_of(layers: list[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """A list that fills with what these layers put out, in order."""
    found: list[torch.Tensor] = []

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def distance_of_layers(student: list[torch.Tensor], teacher: list[torch.Tensor], real: torch.Tensor) -> torch.Tensor:
    """Mean squared distance of hidden states [B, L, H] over the teacher's mean square, the mean over layers."""
    parts = [
        (mine[real] - theirs[real]).square().mean() / theirs[real].square().mean()
        for mine, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(parts).mean()


@dataclass(frozen=True)
class Start:
    """What all trainings of one student share.

    Attributes:
        student: Before training, float32.
        vocabulary: From the teacher's ids to its own.
        teacher: Its teacher.
        layers: The teacher's layer that each of its own was.
        train: Training text, in the teacher's ids.
        validation: Validation text.
        signals: Of both.
        rows: Sequences of a step.
        dtype: What is computed in.
    """

    student: Any
    vocabulary: VocabularyMap
    teacher: Any
    layers: list[int]
    train: Sequences | MappedSequences
    validation: Sequences | MappedSequences
    signals: Signals | TeacherCache
    rows: int
    dtype: torch.dtype

    @classmethod
    def of_world(cls, world: World) -> Start:
        """The teacher without half of its layers."""
        teacher: Any = world.loaded.model
        student = world.student("pruned", 0)
        counts = [len(family_of(model).layers(model)) for model in (teacher, student)]
        kept = evenly_spaced(*counts)
        return cls(
            student, world.vocabulary, teacher, kept, world.train, world.validation, world.cache, BATCH, torch.float32
        )

    @classmethod
    def of_run(cls, folder: Path) -> Start:
        """A run's student before training."""
        run = Run.open(folder)
        shrunk, corpus = run.stage("shrink").path, run.stage("corpus").path
        student, _ = load_student(shrunk / "model", torch.float32)
        way_of(student)  # proved once; copies know it
        dtype = choose_dtype(run.recipe.distill.precision, "cpu")
        teacher: Any = load_teacher(run.recipe.teacher, "cpu", dtype).model
        return cls(
            student,
            VocabularyMap.load(shrunk / "vocabulary.safetensors"),
            teacher,
            list(read_json(shrunk / "shrink.json")["layers"]["kept"]),
            open_split(corpus / "train.safetensors"),
            open_split(corpus / "validation.safetensors"),
            open_signals(run),
            1,
            dtype,
        )


def origin_of(run: Run) -> dict[str, str]:
    """What results are of whose student is a run's: digests of the student and of the signals, and the dtype."""
    return {
        "student": run.stage("shrink").output_digest,
        "signals": run.stage("capture").output_digest,
        "dtype": str(choose_dtype(run.recipe.distill.precision, "cpu")),
    }


def train(start: Start, choice: Choice, rate: float, seed: int, seconds: float) -> dict[str, Any]:
    """One training.

    Returns:
        The validation KL, nats per token (None where it diverged), steps and CPU seconds.
    """
    model = copy.deepcopy(start.student).requires_grad_(requires_grad=True)
    network = LossNetwork(model, start.dtype)
    network.train()
    loss = FusedLoss(make_objective("forward_kl"), used=start.vocabulary.student_used)
    source = BatchSource(start.train, start.vocabulary, start.signals)
    validation = BatchSource(start.validation, start.vocabulary, start.signals)
    tools = optimizers(model, choice)
    mean = Mean(choice.mean, model)
    pass_over = _hidden_pass(start, network, choice, loss) if choice.hidden else None
    order = _endless(len(source), start.rows, seed)
    spent, steps = 0.0, 0
    while spent < seconds:
        begun = time.process_time()
        rows = next(order)
        batch = source.batch(rows)
        denominator = float(max(1, batch.targets.shape[0]))
        if pass_over is None:
            value = network(batch, loss, denominator).value
        else:
            value = pass_over(batch, start.train.part(rows).ids, denominator)
        value.backward()
        network.collect()
        norm = clip_gradients(model, 1.0)
        if not math.isfinite(float(value.detach())) or not math.isfinite(norm):
            return {"kl": None, "steps": steps, "cpu_seconds": spent}
        tools.step(rate * _share(spent / seconds, choice.falls))
        network.refresh()
        took = time.process_time() - begun
        spent, steps = spent + took, steps + 1
        begun = time.process_time()
        mean.add(min(1.0, spent / seconds), took / seconds)
        spent += time.process_time() - begun
    mean.put()
    network.refresh()
    return {"kl": measured(network, validation, loss, start.rows), "steps": steps, "cpu_seconds": spent}


def _hidden_pass(
    start: Start, network: LossNetwork, choice: Choice, loss: FusedLoss
) -> Callable[[Batch, torch.Tensor, float], torch.Tensor]:
    teacher, model = start.teacher, network.worker
    teacher.requires_grad_(requires_grad=False)
    of_teacher = family_of(teacher).layers(teacher)

    def run(batch: Batch, ids: torch.Tensor, denominator: float) -> torch.Tensor:
        # Without gradients models may be computed by other code, which calls no hooks; the teacher's weights want none.
        with outputs_of([of_teacher[index] for index in start.layers]) as theirs:
            hidden_states(teacher, ids[:, : batch.ids.shape[1]], batch.positions)
        with outputs_of(list(family_of(model).layers(model))) as mine:
            flat = hidden_states(model, batch.ids, batch.positions).flatten(0, 1)
        real = torch.zeros(batch.ids.numel(), dtype=torch.bool)
        real[batch.rows] = True
        near = distance_of_layers(
            [one.float() for one in mine], [one.float() for one in theirs], real.view(batch.ids.shape)
        )
        said = loss(flat.index_select(0, batch.rows), output_head(model), batch.targets, batch.signal, denominator)
        return said.value + choice.hidden * near

    return run


def _endless(count: int, size: int, seed: int) -> Iterator[list[int]]:
    turn = 0
    while True:
        yield from (rows for rows in batch_order(count, size, 1, seed + 1000 * turn) if len(rows) == size)
        turn += 1


def _share(progress: float, falls: bool) -> float:
    """The rate over the largest, at this share of the training."""
    if progress < WARM_UP:
        return max(0.05, progress / WARM_UP)
    if not falls:
        return 1.0
    along = (progress - WARM_UP) / (1 - WARM_UP)
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))


@torch.no_grad()
def measured(network: LossNetwork, validation: BatchSource, loss: FusedLoss, rows: int) -> float:
    """Validation KL, nats per token."""
    network.eval()
    total, positions = 0.0, 0
    for first in range(0, len(validation), rows):
        batch = validation.batch(list(range(first, min(first + rows, len(validation)))))
        total += float(network(batch, loss, 1.0).distances.sum()) - batch.left_out
        positions += batch.targets.shape[0]
    network.train()
    return total / max(1, positions)


def compare(start: Start, name: str, seconds: float, seeds: tuple[int, ...], kept: report.Kept) -> dict[str, Any]:
    """Every choice on one student; they take turns, so that what else the machine does falls on all of them."""

    def trained(choice: Choice, rate: float, seed: int) -> dict[str, Any]:
        return kept.cell(
            f"{name} {choice.name} {rate:g} {seed}", functools.partial(train, start, choice, rate, seed, seconds)
        )

    runs: dict[str, dict[float, dict[str, Any]]] = {choice.name: {} for choice in CHOICES}
    for rate in (RATES[name] / 2, RATES[name], RATES[name] * 2):
        for choice in CHOICES:
            runs[choice.name][rate] = trained(choice, rate, seeds[0])
    best = {of: min(tried, key=lambda rate: or_infinite(tried[rate]["kl"])) for of, tried in runs.items()}
    cells = {of: [tried[best[of]]] for of, tried in runs.items()}
    for seed in seeds[1:]:
        for choice in CHOICES:
            cells[choice.name].append(trained(choice, best[choice.name], seed))
    found: dict[str, Any] = {
        of: {
            "rate": best[of],
            "best_rate_at_an_end": best[of] != RATES[name],
            "kl": [cell["kl"] for cell in cells[of]],
            "steps": [cell["steps"] for cell in cells[of]],
            "kl_by_rate": {f"{rate:g}": cell["kl"] for rate, cell in tried.items()},
        }
        for of, tried in runs.items()
    }
    base = found["adamw"]["kl"]
    for entry in found.values():
        if all(kl is not None for kl in [*entry["kl"], *base]):
            ratios = [mine / theirs for mine, theirs in zip(entry["kl"], base, strict=True)]
            entry |= {"over_adamw": statistics.mean(ratios), "over_adamw_interval": report.interval(ratios)}
        else:
            entry |= {"over_adamw": None, "over_adamw_interval": None}
    return found


def figures_of(students: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The KL of each choice over AdamW's, in the student in which it gains least; and the best of them."""
    names = [choice.name for choice in CHOICES if choice.name != "adamw"]
    worst = {name: max(or_infinite(found[name]["over_adamw"]) for found in students.values()) for name in names}
    best = min(worst, key=lambda name: worst[name])
    figures = {f"{name}_over_adamw": value if math.isfinite(value) else None for name, value in worst.items()}
    return figures | {"best": best, "best_over_adamw": worst[best] if math.isfinite(worst[best]) else None}


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="shows that it works, and measures nothing")
    parser.add_argument(
        "--run", type=Path, metavar="FOLDER", help="a run up to its stage `shrink`: its student is one more"
    )
    parser.add_argument("--only", default="", help="students whose name contains this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    if not hasattr(torch.optim, "Muon"):
        parser.error(f"Muon is in torch from 2.9 on; here is {torch.__version__}")
    torch.set_num_threads(1)
    size = SIZES["tiny" if arguments.tiny else "quick"]
    seconds = dict(QUICK_SECONDS if arguments.quick else SECONDS)
    if arguments.run is None:
        del seconds["quickstart"]
    names = [name for name in seconds if arguments.only in name]
    if not names:
        parser.error(f"--only {arguments.only!r}: no student has that in its name; there are {', '.join(seconds)}")
    if arguments.tiny:
        seconds, names = {"llama": 0.3}, ["llama"]
    seeds = SEEDS[:2] if arguments.tiny else SEEDS
    asked: dict[str, Any] = {"seconds": seconds, "seeds": list(seeds)}
    if "quickstart" in seconds:
        asked["run"] = origin_of(Run.open(arguments.run))
    kept = report.Kept(arguments.work, asked)
    students = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            if name == "quickstart":
                start = Start.of_run(arguments.run)
            else:
                world = dataclasses.replace(size, smollm2=48) if name == "smollm2" else size
                start = Start.of_world(make_world(name, world, Path(folder)))
            students[name] = compare(start, name, seconds[name], seeds, kept)
    report.write(figures_of(students), {"cpu_seconds": seconds, "students": students}, arguments.json)


if __name__ == "__main__":
    main()
