"""The training loop: batches to weights, with checkpoints, validations and an honest stop.

Losses are in nats per token.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from stillroom import switch
from stillroom.core import files
from stillroom.core.errors import CorpusError, EnvironmentProblem, Terminated, TrainingDiverged, UsageError
from stillroom.core.memory import Trimmer, release_memory
from stillroom.core.progress import Progress
from stillroom.core.secret import Secret, library_seed
from stillroom.models.compute import choose_dtype
from stillroom.recipe.training import DistillConfig
from stillroom.signals.batches import Batch, BatchSource
from stillroom.training import extension, sweep
from stillroom.training.adapters import faster, is_adapted
from stillroom.training.batch_size import loss_chunk, micro_rows, step_rows
from stillroom.training.checkpoint import (
    BASE,
    State,
    best_weights,
    require_base,
    save_checkpoint,
    unique_tensors,
)
from stillroom.training.checkpoint_copy import CheckpointCopy
from stillroom.training.compiled import MULTIPLE, compile_layers
from stillroom.training.group import ALONE, Group
from stillroom.training.lean import AVERAGES, LeanAdamW
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.memory import Sizes, choose_layout
from stillroom.training.memory import State as MemoryState
from stillroom.training.network import LossNetwork
from stillroom.training.optimizer import clip_gradients, clip_on_device, make_optimizer, set_rate
from stillroom.training.schedule import batch_order, learning_rate, stable_steps, warmup_steps
from stillroom.training.shard import fill, part_again, shard, whole
from stillroom.training.sharded_checkpoint import load_sharded, save_sharded
from stillroom.training.stage_cost import CHECKPOINT_SHARE, VALIDATIONS
from stillroom.training.sweep import Budget, Chosen

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

VALIDATION_WORK = 1 / 3
"""Time per token of a validation over that of a training step, for the estimate of the time left: one of its three passes."""


@dataclass(frozen=True)
class Stretch:
    """A part of a training whose sequences are chosen elsewhere: it goes on from the newest checkpoint, and ends with one.

    Attributes:
        order: Indices of sequences, step by step, of the whole training. What is behind ``until`` may still change.
        rows: Sequences per full step.
        until: Steps after which this part ends.
    """

    order: list[list[int]]
    rows: int
    until: int


@dataclass
class Training:
    """One training run: what it learns from, how, and where it keeps its checkpoints.

    Attributes:
        title: What progress calls it.
        model: The student, float32; it is trained in place. With ``config.lora`` it has adapters
            (:func:`stillroom.training.adapters.attach`), which alone are trained, and keeps them.
        config: The recipe's section.
        train: Training batches.
        validation: Validation batches, with signals.
        distill: Learn from the signals; otherwise from the text alone.
        folder: Where checkpoints and the best weights are kept.
        seed: Order of the sequences: the recipe's seed, or the run's secret.
        device: Where to compute.
        used: Rows of the student's output that are real ids.
        progress: Draws the bar.
        event: Takes metrics.
        group: The processes that train together. The batch of a step does not depend on how many they are.
        base: Identity of the weights that adapters belong to; empty where all weights are trained.
        stretch: The part to do of a training in rounds; None does all of it.
        copies: Where checkpoints are copied to; None copies none, as in every process of a group but the first.
        output_share: Share of the learning rate that the output layer takes.
    """

    title: str
    model: CausalModel
    config: DistillConfig
    train: BatchSource
    validation: BatchSource
    distill: bool
    folder: Path
    seed: int | Secret
    device: torch.device
    used: int | None
    progress: Progress
    event: Callable[..., None]
    group: Group = ALONE
    base: str = ""
    stretch: Stretch | None = None
    copies: CheckpointCopy | None = None
    output_share: float = 1.0
    losses: list[float] = field(default_factory=list)
    chosen: Chosen | None = None
    """The learning rate, once it is known."""
    state: MemoryState = "plain"
    """How weights and averages are stored."""
    checkpointing: bool = False
    """Whether activations are computed twice."""
    passes: str = ""
    """How the student's layers are computed (:attr:`LossNetwork.passes`), once it is known."""
    step_tokens: int = 0
    """Tokens of a full step."""
    step_seconds: float = 0.0
    """Seconds of the steps that this process made, without validations and checkpoints."""
    untouched: list[str] = field(default_factory=list)
    """Trained parameters that no step had a gradient for, by name."""
    silent: int = 0
    """Positions of the steps that this process made, at which the teacher rules out every id that the student has, and teaches
    nothing."""
    _rate: float | None = None

    def run(self) -> State:
        """Train to the end, from the newest checkpoint if there is one. The model ends with the best weights.

        A stretch that is not the last one ends with a checkpoint, and leaves the model with the weights of its last step.

        Raises:
            TrainingDiverged: A loss or the gradient's norm is not finite.
        """
        state = self._train()
        # Gradients and the optimizer's averages went with the steps: what takes their memory's place is less.
        release_memory()
        if self.stretch is not None and self.stretch.until < len(self.stretch.order):
            return state
        self.restore(best_weights(self.folder, state.best_step))
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return state

    def _train(self) -> State:
        """All steps; the model ends with the weights of the last one."""
        config = self.config
        if config.lora is not None:
            require_alone(self.group, "distill.lora")
            assert is_adapted(self.model)
        length = self.train.sequences.length
        taken_over = extension.Begin.load(self.folder)
        if self.stretch is not None:
            per_step, order, last = self.stretch.rows, self.stretch.order, self.stretch.until
        else:
            per_step = taken_over.rows if taken_over else step_rows(config, self.train.sequences.tokens, length)
            order = batch_order(len(self.train), per_step, config.epochs, self.seed)
            last = len(order)
        self.step_tokens = per_step * length
        steps = len(order)
        if steps == 0:
            raise CorpusError("There is no training sequence.", "Add text, or shorten `corpus.sequence_length`.")
        if taken_over:
            # Its rate rose in fewer steps than this run's share of them.
            config = config.model_copy(update={"warmup_share": taken_over.warmup / steps})
        extensible = config.schedule == "wsd" and not self.group.many and self.stretch is None
        fall = stable_steps(config, steps) if extensible else 0
        dtype = choose_dtype(config.precision, self.device.type)
        divided = self.group.divides
        micro = micro_rows(config, per_step, length)
        self.state, self.checkpointing = self._layout(dtype, micro * length, accumulates=micro < per_step)
        if self.state == 8:
            dtype = torch.bfloat16
            for parameter in self.model.parameters():
                parameter.data = parameter.data.to(dtype)
        lean = self.state != "plain"
        network = LossNetwork(
            self.model, torch.float32 if divided else dtype, straight=lean, checkpointing=self.checkpointing
        )
        network.train()
        if divided:
            shard(network, self.model, self.group, dtype)
        if config.compile == "on":
            require_compiler(self.device)
            compile_layers(network.worker)
        self.passes = network.passes
        optimizer = (
            make_optimizer(self.model, config, self.output_share)
            if self.state == "plain"
            else LeanAdamW(self.model, config, AVERAGES[self.state], self.output_share)
        )
        state = load_sharded(self.folder, self.model, optimizer, self.group, self.base)
        network.refresh()
        run_step = _Stepper(self, optimizer, network, self._loss())
        every = config.evaluate_every or max(1, math.ceil(steps / VALIDATIONS))
        row_tokens = self.train.sequences.row_tokens
        tokens = list(itertools.accumulate((sum(row_tokens[i] for i in rows) for rows in order), initial=0))
        validation = VALIDATION_WORK * len(self.validation) * self.validation.sequences.length
        if state.step == 0:
            state = State()
        projected = self.validation.projected
        state.count_lost(projected.lost if projected is not None else 0.0, self.distill)
        if state.step == 0:
            self._validate(network, state)
        self.chosen = self._choose(run_step, optimizer, order, micro, state)
        peak = self.chosen.rate
        saved, took = time.monotonic(), 0.0
        validations = math.ceil(steps / every) - state.step // every
        with (
            self.progress.task(self.title, tokens[-1], beside=validations * validation, asks_itself=True) as task,
            _termination() as terminated,
        ):
            task.skip(tokens[state.step])
            pieces = [self._mine(rows, micro) for rows in order[state.step : last]]
            counts = [len(group) for group in pieces]
            stream = self._stream([piece for group in pieces for piece in group])
            trim = Trimmer()
            self.silent = 0
            with contextlib.closing(stream):  # type: ignore[type-var]
                for group in counts:
                    rate = learning_rate(config, state.step, steps, peak)
                    # 0 asks for a checkpoint after every step. In a group rank 0's clock counts.
                    pause = config.checkpoint_seconds and max(config.checkpoint_seconds, took / CHECKPOINT_SHARE)
                    started = time.monotonic()
                    due = self.group.first and started - saved >= pause
                    batches = [next(stream) for _ in range(group)]
                    self.silent += sum(batch.silent for batch in batches)
                    done = run_step(batches, rate, state.step, (due, bool(terminated)))
                    self.step_seconds += time.monotonic() - started
                    state.step += 1
                    state.clipped += done.gradient_norm > config.gradient_clip
                    self.losses.append(done.loss)
                    self.event(
                        step=state.step,
                        loss=done.loss,
                        kl=done.kl,
                        cross_entropy=done.cross_entropy,
                        gradient_norm=done.gradient_norm,
                        learning_rate=rate,
                        tokens=tokens[state.step],
                    )
                    task.advance(tokens[state.step] - tokens[state.step - 1], note=f"loss {done.loss:.3f}")
                    validated = state.step % every == 0 or state.step == steps
                    if validated:
                        self._validate(network, state)
                        task.did_beside(validation)
                    if not self.group.many:
                        due = time.monotonic() - saved >= pause
                        stop = bool(terminated) or not switch.is_on()
                    else:
                        due, stop = done.due, done.stop
                    saves = validated or due or stop or state.step in (fall, last)
                    if saves:
                        begun = time.monotonic()
                        self._save(optimizer, state)
                        saved = time.monotonic()
                        took = saved - begun
                    if state.step == fall:
                        warmup = warmup_steps(config, steps)
                        extension.keep(self.folder, extension.Begin(fall, per_step, warmup, state.best_step))
                    if saves and self.copies is not None:
                        self.copies.begin(state.step)
                    # After the last step, too: what comes after the training is not begun.
                    if stop and (state.step < steps or (terminated and not self.group.many)):
                        copied = self.copies is not None and self.copies.wait()
                        if not terminated:
                            switch.require_on()
                            continue  # it is on again
                        raise Terminated(
                            f"Stopped by SIGTERM after step {state.step} of the stage `{self.title}`.",
                            f"A checkpoint was written{' and copied' if copied else ''}; the same command goes on.",
                        )
                    trim()
        if self.copies is not None:
            self.copies.wait()
        state.tokens = tokens[state.step]
        if config.lora is not None:
            named = self.model.named_parameters()
            self.untouched = [name for name, held in named if held.requires_grad and not optimizer.state.get(held)]
        return state

    def _layout(self, dtype: torch.dtype, tokens: int, *, accumulates: bool) -> tuple[MemoryState, bool]:
        if self.group.many:
            if self.config.state != "auto" or self.config.gradient_checkpointing == "on":
                raise UsageError(
                    "`distill.state` and `distill.gradient_checkpointing` are for one process; here there are "
                    f"{self.group.world}.",
                    "Leave both at `auto`, or train in one process.",
                )
            return "plain", False
        limit = None
        if self.device.type == "cuda" and torch.cuda.is_available():
            # The student is there already.
            limit = torch.cuda.mem_get_info(self.device)[0] + sum(p.nbytes for p in self.model.parameters())
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return choose_layout(
            self.config,
            Sizes.of(self.model.config),
            trained,
            tokens,
            loss_chunk(self.config, self.device.type, self._output_rows),
            limit,
            precise=dtype == torch.float32,
            accumulates=accumulates,
            frozen=sum(p.numel() for p in self.model.parameters()) - trained,
        )

    def _mine(self, rows: list[int], micro: int) -> list[list[int]]:
        """A step's micro-batches of this process; of a group each process has as many, and the last ones may be empty."""
        mine = _micro_batches(self.group.share(rows), micro)
        most = math.ceil(math.ceil(len(rows) / self.group.world) / micro)
        return mine + [[]] * (most - len(mine)) if self.group.many else mine

    def _save(self, optimizer: torch.optim.Optimizer, state: State) -> None:
        if self.group.many:
            save_sharded(self.folder, self.model, optimizer, state, self.group)
        else:
            save_checkpoint(self.folder, self.model, optimizer, state, self.base)

    def _choose(
        self,
        run_step: _Stepper,
        optimizer: torch.optim.Optimizer,
        order: list[list[int]],
        micro: int,
        state: State,
    ) -> Chosen:
        """The learning rate. After a sweep, model, optimizer and random state are what they were before it."""
        asked = self.config.learning_rate
        if asked != "auto":
            return Chosen(asked, "given")
        kept = sweep.Kept(self.folder / sweep.SWEEP, writes=self.group.first)
        chosen, known = kept.load()
        if chosen is not None:
            return chosen
        distance = state.history[0]["kl"]
        centre = sweep.table_rate(int(self.model.config.hidden_size), distance)
        if self.config.lora is not None:
            centre *= faster(int(self.model.config.hidden_size), self.config.lora)
            centre = min(max(centre, sweep.LOWEST), sweep.HIGHEST / sweep.FACTOR)
        sizes = list(map(len, order))
        budget = Budget.of(sizes, sum(sizes), len(self.validation)) if state.step == 0 else None
        if budget is None:
            chosen = Chosen(centre, "table")
        else:
            chosen = self._sweep(run_step, optimizer, order, micro, budget, centre, kept, known)
            chosen.rate = sweep.for_whole_run(chosen, distance, centre)
        kept.chosen(chosen)
        self.event(event="learning_rate", **chosen.record())
        return chosen

    def _sweep(
        self,
        run_step: _Stepper,
        optimizer: torch.optim.Optimizer,
        order: list[list[int]],
        micro: int,
        budget: Budget,
        centre: float,
        kept: sweep.Kept,
        known: list[tuple[float, float | None]],
    ) -> Chosen:
        """Make the trials; see :mod:`stillroom.training.sweep`."""
        start = best_weights(self.folder, 0)
        count = len(self.validation)
        held = [index * count // budget.validation_rows for index in range(budget.validation_rows)]
        points = list(known)

        def rewind() -> None:
            self.restore(start)
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()
            run_step.network.refresh()
            self._rate = None

        # What trials draw leaves what the training draws as it is.
        cards = [self.device] if self.device.type == "cuda" else []
        title = f"{self.title}: learning rate"
        with torch.random.fork_rng(cards), self.progress.task(title, total=sweep.TRIALS * budget.steps) as task:

            def trial(rate: float) -> float | None:
                rewind()
                value: float | None = None
                pieces = [self._mine(rows, micro) for rows in order[: budget.steps]]
                stream = self._stream([piece for group in pieces for piece in group])
                with contextlib.closing(stream), contextlib.suppress(TrainingDiverged):  # type: ignore[type-var]
                    for step, group in enumerate(pieces):
                        batches = [next(stream) for _ in group]
                        run_step(batches, learning_rate(self.config, step, budget.steps, rate), step)
                        task.advance(1, note=f"{rate:.1e}")
                    measured = self._measure(run_step.network, held)
                    value = measured["kl" if self.distill else "cross_entropy"]
                    value = value if math.isfinite(value) else None
                points.append((rate, value))
                kept.tried(points)
                self.event(event="trial", learning_rate=rate, value=value)
                return value

            best, points = sweep.search(trial, centre, known)
        rewind()
        return Chosen(best, "sweep", points, budget.steps, len(points) * budget.trial_share)

    def _loss(self) -> FusedLoss:
        config = self.config
        return FusedLoss(
            make_objective(config.objective) if self.distill else None,
            config.cross_entropy_weight if self.distill else 1.0,
            config.temperature if self.distill else 1.0,
            self.used,
            loss_chunk(config, self.device.type, self._output_rows),
            config.biased,
            config.chunk_weight,
            config.chunk_temperature,
        )

    @property
    def _output_rows(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[0])

    def _stream(self, order: list[list[int]]) -> Iterator[Batch]:
        """Batches on the CPU, made ahead on another thread; for a GPU in pinned memory, so that copies do not wait."""
        pinned = self.device.type == "cuda" and torch.cuda.is_available()
        there = self._pinning() if pinned else None if self.device.type == "cpu" else Batch.located
        if self.config.compile != "on":
            return self.train.stream(order, there)

        def padded(batch: Batch) -> Batch:
            found = batch.padded(MULTIPLE)
            return found if there is None else there(found)

        return self.train.stream(order, padded)

    def _pinning(self) -> Callable[[Batch], Batch]:
        """Pins batches, on another thread. There the first card is the current one, whichever this process of a group has."""
        if not self.group.many:
            return Batch.pinned
        card = torch.cuda.current_device()

        def pinned(batch: Batch) -> Batch:
            torch.cuda.set_device(card)
            return batch.pinned()

        return pinned

    def _diverged(self, what: str, step: int) -> NoReturn:
        """Stop: a number is not finite. ``step`` is the one that it belongs to, counted from 1; 0 is before the first."""
        if self._rate is None:
            raise TrainingDiverged(
                f"{self.title}: {what} before the first step.",
                "The student is broken as it begins: see its stage `shrink`, or try `precision: float32`.",
            )
        peak = self.chosen.rate if self.chosen is not None else self._rate
        raise TrainingDiverged(
            f"{self.title}: {what} at step {step}, learning rate {self._rate:.2e} (largest: {peak:.2e}).",
            f"Try `learning_rate: {peak / 3:.0e}`, a longer warm-up, or `precision: float32`. Nothing of this step was kept; "
            "after changing the recipe, run it again.",
        )

    @torch.no_grad()
    def _measure(self, network: LossNetwork, indices: list[int]) -> dict[str, float]:
        """KL and cross-entropy on sequences of the validation split, nats per token."""
        network.eval()
        config = self.config
        forward_kl = FusedLoss(
            make_objective("forward_kl"),
            0.0,
            config.temperature,
            self.used,
            loss_chunk(config, self.device.type, self._output_rows),
            config.biased,
            config.chunk_weight,
            config.chunk_temperature,
        )
        distance = cross_entropy = left_out = 0.0
        positions = 0
        per_pass = max(1, self.step_tokens // self.validation.sequences.length)
        for rows in self._mine(indices, per_pass):
            batch = self.validation.batch(rows)
            batch = (batch.padded(MULTIPLE) if config.compile == "on" else batch).to(self.device)
            result = network(batch, forward_kl, 1.0)
            distance += float(result.distances.sum())
            cross_entropy += float(result.cross_entropies.sum())
            left_out += batch.left_out
            positions += batch.targets.shape[0]
        network.train()
        if self.group.divides:
            part_again(network)
        if self.group.many:
            distance, cross_entropy, left_out, counted = self.group.sum([distance, cross_entropy, left_out, positions])
            positions = int(counted)
        count = max(1, positions)
        return {"kl": (distance - left_out) / count, "cross_entropy": cross_entropy / count}

    def _validate(self, network: LossNetwork, state: State) -> None:
        """Measure the validation split; keep the weights when they are the best so far."""
        measured = {"step": state.step, **self._measure(network, list(range(len(self.validation))))}
        kl = measured["kl"]
        self.event(event="validation", **measured)
        if not math.isfinite(kl):
            self._diverged(f"the validation KL is {kl}", state.step)
        state.history.append(measured)
        # Each side keeps the weights that did best at what it was trained for: anything else would be unfair to the baseline.
        value = kl if self.distill else measured["cross_entropy"]
        if state.best_value is None or value < state.best_value:
            state.best_value, state.best_step, state.best_kl = value, state.step, kl
            self._keep(best_weights(self.folder, state.step))

    def _keep(self, path: Path) -> None:
        from safetensors.torch import save_file

        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in unique_tensors(self.model).items():
            # Every process takes part in gathering it; into the host's memory it goes once.
            found = whole(tensor)
            if self.group.first:
                tensors[name] = found.cpu().contiguous()
        if self.group.first:
            with files.replacing(path) as beside:
                save_file(tensors, beside, metadata={BASE: self.base} if self.base else None)
        self.group.barrier()

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        """Take the weights of a file."""
        from safetensors.torch import load_file

        require_base(path, self.base)
        tensors = load_file(path)
        for name, tensor in unique_tensors(self.model).items():
            fill(tensor, tensors[name])


@dataclass(frozen=True)
class _Step:
    """What one optimizer step measured, nats per token; the gradient's norm is the one before clipping."""

    loss: float
    kl: float | None
    cross_entropy: float
    gradient_norm: float
    due: bool = False
    stop: bool = False


@dataclass(frozen=True)
class _Stepper:
    """Makes optimizer steps."""

    training: Training
    optimizer: torch.optim.Optimizer
    network: LossNetwork
    loss: FusedLoss

    def __call__(
        self, batches: list[Batch], rate: float, step: int, wishes: tuple[bool, bool] = (False, False)
    ) -> _Step:
        """One step over its micro-batches, on the CPU as they are made; ``step`` is counted from 0.

        A GPU is waited for once per step: for the losses and the gradient's norm, before the optimizer changes anything.
        ``wishes`` are whether rank 0 wants a checkpoint and whether this process was told to stop: the group's answer to them
        is in what is returned.
        """
        if self.training.group.many:
            return self._together(batches, rate, step, wishes)
        training = self.training
        device = training.device
        training._rate = rate
        set_rate(self.optimizer, rate)
        if training.config.lora is not None and training.config.lora.dropout > 0:
            torch.manual_seed((library_seed(training.seed, "dropout of adapters") << 31) + step)
        positions = sum(batch.targets.shape[0] for batch in batches)
        denominator = float(max(1, positions))
        sums: list[torch.Tensor] = []
        for batch in batches:
            self._check(batch)
            there = batch.to(device)
            result = self.network(there, self.loss, denominator)
            sums += [result.value.detach(), result.distances.sum(), result.cross_entropies.sum()]
            self.network.backward(result.value, there)
            self.network.collect()
        lean = self.optimizer if isinstance(self.optimizer, LeanAdamW) else None
        if lean is not None:
            lean.gradients = self.network.hand_over()
        if device.type == "cpu" and lean is None:
            loss, distance, cross_entropy = _added(list(map(float, sums)), denominator)
            norm = clip_gradients(training.model, training.config.gradient_clip) if math.isfinite(loss) else math.nan
        else:
            largest = training.config.gradient_clip
            norm_there = clip_on_device(training.model, largest) if lean is None else lean.clip(largest)
            *values, norm = torch.stack([*sums, norm_there]).tolist()
            loss, distance, cross_entropy = _added(values, denominator)
        if not math.isfinite(loss):
            training._diverged(f"the loss is {loss}", step + 1)
        if not math.isfinite(norm):
            training._diverged(f"the gradient's norm is {norm}", step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.network.refresh()
        # With a sparse signal the objective is a cross-entropy to the teacher; without the teacher's entropy it is the KL.
        kl = distance - sum(batch.left_out for batch in batches) / denominator
        return _Step(loss, kl if self.loss.objective is not None else None, cross_entropy, norm)

    def _check(self, batch: Batch) -> None:
        """Look at a signal's ids while they are on the CPU; for those that stay there the loss does it."""
        objective, training = self.loss.objective, self.training
        if training.device.type != "cpu" and batch.signal is not None and objective is not None:
            objective.check(batch.signal, self.loss.used or training._output_rows, biased=self.loss.biased)

    def _together(self, batches: list[Batch], rate: float, step: int, wishes: tuple[bool, bool]) -> _Step:
        """As :meth:`__call__`, in a group: each process has its share of the step's sequences. A GPU is waited for twice: for
        the losses, which are summed over the group, and for the gradient's norm.
        """
        training, group = self.training, self.training.group
        training._rate = rate
        set_rate(self.optimizer, rate)
        # The loss is divided by the positions of the whole step, so that gradients are summed.
        (positions,) = group.sum([sum(batch.targets.shape[0] for batch in batches)])
        denominator = max(1.0, positions)
        sums: list[torch.Tensor] = []
        mine = 0.0
        for number, batch in enumerate(batches):
            self._check(batch)
            if group.divides:
                self.network.set_requires_gradient_sync(number == len(batches) - 1)  # type: ignore[operator]
            result = self.network(batch.to(training.device), self.loss, denominator)
            sums += [result.value.detach(), result.distances.sum(), result.cross_entropies.sum()]
            mine += batch.left_out / denominator
            result.value.backward()
            self.network.collect()
        values = list(map(float, sums)) if training.device.type == "cpu" else torch.stack(sums).tolist()
        loss, distance, cross_entropy, left_out, due, stop = group.sum(
            [*_added(values, denominator), mine, *map(float, wishes)]
        )
        # After the sum, so that all processes stop together.
        if not math.isfinite(loss):
            training._diverged(f"the loss is {loss}", step + 1)
        group.sum_gradients(list(training.model.parameters()))
        norm = clip_gradients(training.model, training.config.gradient_clip)
        if not math.isfinite(norm):
            training._diverged(f"the gradient's norm is {norm}", step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.network.refresh()
        kl = distance - left_out if self.loss.objective is not None else None
        return _Step(loss, kl, cross_entropy, norm, due > 0, stop > 0)


@contextlib.contextmanager
def _termination() -> Iterator[list[int]]:
    """A list that SIGTERM adds to while the body runs, instead of ending the process."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGTERM, before)


def _added(values: list[float], denominator: float) -> tuple[float, float, float]:
    """Loss, distance and cross-entropy of a step from those of its micro-batches, three numbers each."""
    loss = distance = cross_entropy = 0.0
    for index in range(0, len(values), 3):
        loss += values[index]
        distance += values[index + 1] / denominator
        cross_entropy += values[index + 2] / denominator
    return loss, distance, cross_entropy


def require_alone(group: Group, key: str) -> None:
    """Refuse, in a group of processes, what is for one.

    Args:
        group: The group.
        key: The recipe's key that asks for it, such as ``distill.lora``.

    Raises:
        UsageError: There are several.
    """
    if group.many:
        raise UsageError(
            f"`{key}` trains in one process, and here there are {group.world}.",
            f"Train in one process (without --workers), or leave `{key}` out.",
        )


def require_compiler(device: torch.device) -> None:
    """Refuse ``compile: on`` where the CPU's code cannot be compiled, before anything is spent.

    Raises:
        EnvironmentProblem: There is no C++ compiler.
    """
    named = os.environ.get("CXX")
    if device.type == "cpu" and not any(map(shutil.which, (named,) if named else ("c++", "g++", "clang++", "cl"))):
        raise EnvironmentProblem(
            "`compile: on` needs a C++ compiler, and there is none" + (f" named {named} (CXX)." if named else "."),
            "Install one (Debian and Ubuntu: apt install g++), or set `distill.compile: off`.",
        )


def _micro_batches(rows: list[int], size: int) -> list[list[int]]:
    """Some sequences, at most ``size`` at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
