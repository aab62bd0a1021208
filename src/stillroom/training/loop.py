"""The training loop: batches to weights, with checkpoints, validations and an honest stop.

Losses are in nats per token.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stillroom.core import files
from stillroom.core.errors import CorpusError, TrainingDiverged
from stillroom.core.progress import Progress
from stillroom.models.compute import choose_dtype
from stillroom.recipe.training import DistillConfig
from stillroom.signals.batches import Batch, BatchSource
from stillroom.training.checkpoint import State, load_checkpoint, save_checkpoint, unique_tensors
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective
from stillroom.training.network import LossNetwork
from stillroom.training.optimizer import clip_gradients, make_optimizer
from stillroom.training.schedule import batch_order, learning_rate

if TYPE_CHECKING:
    from accelerate import Accelerator

    from stillroom.models.types import CausalModel

VALIDATIONS = 10
"""Validations in a run whose recipe does not say."""
VALIDATION_WORK = 1 / 3
"""Time per token of a validation over that of a training step, for the estimate of the time left: one of its three passes."""
COMPILE_PAYS_AFTER = 400
"""Steps from which compiling the network is repaid on a processor."""


@dataclass
class Training:
    """One training run: what it learns from, how, and where it keeps its checkpoints.

    Attributes:
        title: What progress calls it.
        model: The student, float32; it is trained in place.
        config: The recipe's section.
        train: Training batches.
        validation: Validation batches, with signals.
        distill: Learn from the signals; otherwise from the text alone.
        folder: Where checkpoints and the best weights are kept.
        seed: Order of the sequences.
        device: Where to compute.
        used: Rows of the student's output that are real ids.
        progress: Draws the bar.
        event: Takes metrics.
    """

    title: str
    model: CausalModel
    config: DistillConfig
    train: BatchSource
    validation: BatchSource
    distill: bool
    folder: Path
    seed: int
    device: torch.device
    used: int | None
    progress: Progress
    event: Callable[..., None]
    losses: list[float] = field(default_factory=list)

    def run(self) -> State:
        """Train to the end, from the newest checkpoint if there is one. The model ends with the best weights.

        Raises:
            TrainingDiverged: A loss or the gradient's norm is not finite.
        """
        from accelerate import Accelerator

        config = self.config
        length = self.train.sequences.length
        per_step = max(1, config.batch_tokens // length)
        order = batch_order(len(self.train), per_step, config.epochs, self.seed)
        steps = len(order)
        if steps == 0:
            raise CorpusError("There is no training sequence.", "Add text, or shorten `corpus.sequence_length`.")
        dtype = choose_dtype(config.precision, self.device.type)
        network = LossNetwork(self.model, dtype)
        network.train()
        # A compiled network is computed by transformers' code; `auto` keeps to the layers by hand where there are some.
        if config.compile == "on" or (config.compile == "auto" and steps >= COMPILE_PAYS_AFTER and not network.by_hand):
            network.worker.base_model.compile()
        optimizer = make_optimizer(self.model, config)
        accelerator = Accelerator(cpu=self.device.type == "cpu")
        prepared, optimizer_ = accelerator.prepare(network, optimizer)
        state = load_checkpoint(self.folder, self.model, optimizer)
        network.refresh()
        fused_loss = self._loss()
        every = config.evaluate_every or max(1, math.ceil(steps / VALIDATIONS))
        micro = max(1, (config.micro_batch_tokens or config.batch_tokens) // length)
        saved = time.monotonic()
        per_batch = length * per_step
        validation = VALIDATION_WORK * len(self.validation) * self.validation.sequences.length
        validations = math.ceil(steps / every) - state.step // every + (state.step == 0)
        with self.progress.task(self.title, total=steps * per_batch, beside=validations * validation) as task:
            task.skip(state.step * per_batch)
            if state.step == 0:
                self._validate(network, state)
                task.did_beside(validation)
            pieces = [
                [indices[i : i + micro] for i in range(0, len(indices), micro)] for indices in order[state.step :]
            ]
            counts = [len(group) for group in pieces]
            stream = self.train.stream([piece for group in pieces for piece in group])
            with contextlib.closing(stream):  # type: ignore[type-var]
                for group in counts:
                    rate = learning_rate(config, state.step, steps)
                    for parameters in optimizer.param_groups:
                        parameters["lr"] = rate
                    batches = [next(stream).to(self.device) for _ in range(group)]
                    loss, kl, cross_entropy = self._step(
                        accelerator, prepared, optimizer_, fused_loss, batches, rate, state.step
                    )
                    network.refresh()
                    state.step += 1
                    self.losses.append(loss)
                    self.event(
                        step=state.step,
                        loss=loss,
                        kl=kl,
                        cross_entropy=cross_entropy,
                        learning_rate=rate,
                        tokens=state.step * per_batch,
                    )
                    task.advance(per_batch, note=f"loss {loss:.3f}")
                    if state.step % every == 0 or state.step == steps:
                        self._validate(network, state)
                        task.did_beside(validation)
                    if state.step < steps and time.monotonic() - saved >= config.checkpoint_seconds:
                        save_checkpoint(self.folder, self.model, optimizer, state)
                        saved = time.monotonic()
        self._restore_best()
        return state

    def _loss(self) -> FusedLoss:
        config = self.config
        return FusedLoss(
            make_objective(config.objective) if self.distill else None,
            config.cross_entropy_weight if self.distill else 1.0,
            config.temperature if self.distill else 1.0,
            self.used,
            config.loss_chunk,
            config.biased,
        )

    def _step(
        self,
        accelerator: Accelerator,
        network: LossNetwork,
        optimizer: torch.optim.Optimizer,
        fused_loss: FusedLoss,
        batches: list[Batch],
        rate: float,
        step: int,
    ) -> tuple[float, float | None, float]:
        """One optimizer step over its micro-batches; returns loss, estimated KL and cross-entropy, nats per token."""
        positions = sum(batch.targets.shape[0] for batch in batches)
        denominator = float(max(1, positions))
        loss = distance = cross_entropy = 0.0
        for batch in batches:
            result = network(batch, fused_loss, denominator)
            loss += float(result.value.detach())
            distance += float(result.distances.sum()) / denominator
            cross_entropy += float(result.cross_entropies.sum()) / denominator
            if not math.isfinite(loss):
                self._diverged(f"the loss is {loss}", rate, step)
            accelerator.backward(result.value)
            accelerator.unwrap_model(network).collect()
        norm = clip_gradients(self.model, self.config.gradient_clip)
        if not math.isfinite(norm):
            self._diverged(f"the gradient's norm is {norm}", rate, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # With a sparse signal the objective is a cross-entropy to the teacher; without the teacher's entropy it is the KL.
        kl = distance - sum(batch.left_out for batch in batches) / denominator
        return loss, kl if fused_loss.objective is not None else None, cross_entropy

    def _diverged(self, what: str, rate: float, step: int) -> None:
        raise TrainingDiverged(
            f"{self.title}: {what} at step {step + 1}, learning rate {rate:.2e}.",
            f"Try a learning rate of {rate / 3:.0e}, a longer warm-up, or `precision: float32`. Nothing of this step was kept; "
            "after changing the recipe, run it again.",
        )

    @torch.no_grad()
    def _validate(self, network: LossNetwork, state: State) -> None:
        """Measure the validation split; keep the weights when they are the best so far."""
        network.eval()
        config = self.config
        forward_kl = FusedLoss(
            make_objective("forward_kl"), 0.0, config.temperature, self.used, config.loss_chunk, config.biased
        )
        distance = cross_entropy = left_out = 0.0
        positions = 0
        per_step = max(1, self.config.batch_tokens // self.validation.sequences.length)
        count = len(self.validation)
        for start in range(0, count, per_step):
            batch = self.validation.batch(list(range(start, min(start + per_step, count)))).to(self.device)
            result = network(batch, forward_kl, 1.0)
            distance += float(result.distances.sum())
            cross_entropy += float(result.cross_entropies.sum())
            left_out += batch.left_out
            positions += batch.targets.shape[0]
        network.train()
        kl = (distance - left_out) / max(1, positions)
        measured = {"step": state.step, "kl": kl, "cross_entropy": cross_entropy / max(1, positions)}
        self.event(event="validation", **measured)
        if not math.isfinite(kl):
            self._diverged(f"the validation KL is {kl}", learning_rate(self.config, state.step, 1), state.step)
        state.history.append(measured)
        # Each side keeps the weights that did best at what it was trained for: anything else would be unfair to the baseline.
        value = kl if self.distill else measured["cross_entropy"]
        if state.best_value is None or value < state.best_value:
            state.best_value, state.best_step, state.best_kl = value, state.step, kl
            self._keep_best()

    def _keep_best(self) -> None:
        from safetensors.torch import save_file

        with files.replacing(self.folder / "best.safetensors") as beside:
            save_file({name: tensor.cpu().contiguous() for name, tensor in unique_tensors(self.model).items()}, beside)

    @torch.no_grad()
    def _restore_best(self) -> None:
        from safetensors.torch import load_file

        best = self.folder / "best.safetensors"
        if best.is_file():
            tensors = load_file(best)
            for name, tensor in unique_tensors(self.model).items():
                tensor.copy_(tensors[name])
