"""The student and its loss as one module, so that one call runs a step on any device."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.core.errors import UnsupportedModel
from stillroom.models import stack
from stillroom.models.attention import LONGEST
from stillroom.models.forward import attention_again, hidden_states, output_head, way_of
from stillroom.models.threads import run_together
from stillroom.signals.batches import Batch
from stillroom.training.adapters import DROPOUT
from stillroom.training.losses.fused import FusedLoss, Loss
from stillroom.training.losses.objective import rows_of
from stillroom.training.optimizer import shares_of

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel


class LossNetwork(nn.Module):
    """A causal language model followed by the fused loss.

    In bfloat16 a working copy of the weights computes (Micikevicius et al. 2018, arXiv 1710.03740, section 3.1): it is
    rounded once per step, where autocast rounds weights and activations in every layer. The model's own weights, their
    gradients and the optimizer's state stay float32. Frozen weights that have this dtype already are not copied.

    Args:
        model: A Hugging Face causal language model, float32; what the optimizer changes.
        dtype: Format that forward and backward pass compute in.
        straight: Leave gradients to the optimizer as they come: :meth:`hand_over`.
        checkpointing: Keep what enters each layer only, and compute the rest again.
    """

    def __init__(
        self, model: CausalModel, dtype: torch.dtype, *, straight: bool = False, checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.straight = straight
        self.checkpointing = checkpointing
        self.gradients: dict[int, torch.Tensor] = {}
        # That of adapters is drawn by the step's number, so that it is the same in a resumed run.
        dropped = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Dropout) and module.p > 0 and DROPOUT not in name.split(".")
        ]
        if dropped:
            raise UnsupportedModel(
                f"The student has dropout ({dropped[0]}), with which a resumed run would differ from an uninterrupted one.",
                "Set the dropout keys of its config to 0.",
            )
        self.dtype = dtype
        own = list(model.parameters())
        worker = model
        if any(parameter.dtype != dtype for parameter in own):
            if model.device.type == "cpu" and all(parameter.dtype == torch.float32 for parameter in own):
                way_of(model)  # proved in float32, where rounding hides nothing; the copy is run in the same way
            shared = {id(held): held for held in own if not held.requires_grad and held.dtype == dtype}
            worker = copy.deepcopy(model, shared)
            # Buffers, such as the frequencies of rotary embeddings, keep their format.
            for parameter in worker.parameters():
                parameter.data = parameter.data.to(dtype)
        self.worker = worker
        if checkpointing:
            again: Any = worker
            again.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        working = list(worker.parameters())
        if straight:
            # A gradient is taken over as soon as it is whole: those of two micro-batches are never there together.
            for mine, parameter in zip(own, working, strict=True):
                taken = functools.partial(self._take, id(mine))
                parameter.register_post_accumulate_grad_hook(taken)  # type: ignore[no-untyped-call]
        self._pairs = [(a, b) for a, b in zip(own, working, strict=True) if a is not b]
        if worker is not model and (layers := self._by_hand_layers()) is not None:
            stack.join_weights(layers)

    def forward(self, batch: Batch, loss: FusedLoss, denominator: float) -> Loss:
        """Loss of a batch; see :class:`FusedLoss`."""
        layers = self._layers(batch)
        if layers is not None:
            return self._by_hand(layers, batch, loss, denominator)
        flat = hidden_states(self.worker, batch.ids, batch.positions, batch.documents).flatten(0, 1)
        if batch.rows.shape[0] != flat.shape[0]:
            flat = flat.index_select(0, batch.rows)
        return loss(flat, output_head(self.worker), batch.targets, batch.signal, denominator, batch.chunks)

    def backward(self, value: torch.Tensor, batch: Batch) -> None:
        """Gradients of a loss of this batch; layers may run again for it."""
        with attention_again(self.worker, batch.ids) if self.checkpointing else contextlib.nullcontext():
            value.backward()  # type: ignore[no-untyped-call]

    @property
    def passes(self) -> str:
        """How the layers are computed, for a run's record: ``by hand``, or by the model's own code with documents ``packed`` or
        ``by row``, each in a row of its own.
        """
        if self.by_hand:
            return "by hand"
        return "packed" if way_of(self.worker).packed else "by row"

    @property
    def by_hand(self) -> bool:
        """Whether :mod:`stillroom.models.stack` computes this model, where batches allow it."""
        return self._by_hand_layers() is not None

    def _by_hand_layers(self) -> list[stack.Layer] | None:
        """The layers for the pass by hand: of models that it knows, on a CPU, where it was proved, and where it pays."""
        if not self._pays():
            return None
        if self.checkpointing or self.worker.device.type != "cpu" or (layers := stack.layers_of(self.worker)) is None:
            return None
        return layers if way_of(self.worker).by_hand else None

    def _pays(self) -> bool:
        """Not for one thread in float32: it gains nothing from shares or fewer conversions; autograd is 3 to 5 % faster."""
        return self.dtype != torch.float32 or torch.get_num_threads() > 1

    def _layers(self, batch: Batch) -> list[stack.Layer] | None:
        """The layers, where the pass by hand computes this batch: on a CPU, for models that it knows."""
        rows = batch.rows
        if (
            batch.ids.device.type != "cpu"
            or batch.chunks is not None  # a thread's share of the positions could end inside a chunk
            or rows.numel() == 0
            or not bool((rows.diff() > 0).all())
            or int(batch.positions.max()) >= LONGEST
            or (batch.signal is not None and len(batch.signal) != rows.shape[0])
        ):
            return None
        return self._by_hand_layers()

    def _by_hand(self, layers: list[stack.Layer], batch: Batch, loss: FusedLoss, denominator: float) -> Loss:
        """As :meth:`forward`, by :mod:`stillroom.models.stack`; like the loss, it has its gradients at once."""
        body, head = self.worker.base_model, output_head(self.worker)
        norm: Any = body.norm
        parameters = [parameter for parameter in self.worker.parameters() if parameter.requires_grad]
        backward = torch.is_grad_enabled() and bool(parameters)
        line = stack.line_of(batch.ids, batch.positions, batch.rows)
        shares = len(line.cuts) - 1
        losses: list[Loss | None] = [None] * shares
        head_grads: list[list[torch.Tensor]] = [[] for _ in range(shares)]

        def share_loss(share: int, hidden: torch.Tensor, rows: slice) -> torch.Tensor | None:
            targets = None if batch.targets is None else batch.targets[rows]
            signal = None if batch.signal is None else rows_of(batch.signal, rows.start, rows.stop)
            if not backward:
                losses[share] = loss(hidden, head, targets, signal, denominator)
                return None
            with torch.enable_grad():
                leaves = [hidden.requires_grad_(), head.matrix.detach().requires_grad_()]
                if head.bias is not None:
                    leaves.append(head.bias.detach().requires_grad_())
                leaf = dataclasses.replace(head, matrix=leaves[1], bias=leaves[2] if head.bias is not None else None)
                found = loss(hidden, leaf, targets, signal, denominator)
                given, *of_head = torch.autograd.grad(found.value, leaves)
            head_grads[share] = of_head
            losses[share] = Loss(found.value.detach(), found.distances, found.cross_entropies)
            return given

        grads = stack.Stack(body, layers, line, backward=backward).run(share_loss)
        found = [one for one in losses if one is not None]
        value = torch.stack([one.value for one in found]).sum()
        distances = torch.cat([one.distances for one in found])
        cross_entropies = torch.cat([one.cross_entropies for one in found])
        if grads is not None:
            pairs: list[tuple[torch.Tensor, torch.Tensor]] = [
                (self.worker.get_input_embeddings().weight, grads.embedding),
                (norm.weight, grads.norm),
            ]
            for layer, layer_grads in zip(layers, grads.layers, strict=True):
                pairs += zip(layer.parameters, layer_grads, strict=True)
            for matrix_grad, *bias_grad in head_grads:
                pairs += [
                    (head.matrix, matrix_grad),
                    *((leaf, grad) for leaf, grad in zip([head.bias], bias_grad, strict=False) if leaf is not None),
                ]
            sums: dict[int, torch.Tensor] = {}
            for weight, grad in pairs:
                sums[id(weight)] = sums[id(weight)].add_(grad) if id(weight) in sums else grad
            del pairs, grads, head_grads  # autograd takes gradients over only if no one else has them
            stored = [sums.pop(id(parameter)).to(parameter.dtype) for parameter in parameters]
            value = _Known.apply(value, stored, *parameters)  # type: ignore[no-untyped-call]
        return Loss(value, distances, cross_entropies)

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the model's weights into the working copy; needed whenever they have changed."""
        shares = self._shares()

        def copy(share: int) -> None:
            pairs = shares[share]
            torch._foreach_copy_([worker for _, worker in pairs], [own for own, _ in pairs])

        if self._pairs:
            run_together(len(shares), copy)

    @torch.no_grad()
    def collect(self) -> None:
        """Add the working copy's gradients to those of the model's weights, in float32, and forget them."""
        if self.straight:
            return
        shares = self._shares()

        def add(share: int) -> None:
            for own, worker in shares[share]:
                if worker.grad is None:
                    continue
                if own.grad is None:
                    own.grad = worker.grad.to(own.dtype)
                else:
                    own.grad.add_(worker.grad)
                worker.grad = None

        if self._pairs:
            run_together(len(shares), add)

    @torch.no_grad()
    def _take(self, key: int, parameter: torch.Tensor) -> None:
        """Take over a gradient: of one micro-batch as it is; the sum of several in float32."""
        grad, parameter.grad = parameter.grad, None
        if grad is None:
            return
        before = self.gradients.pop(key, None)
        self.gradients[key] = grad if before is None else before.float().add_(grad)

    def hand_over(self) -> dict[int, torch.Tensor]:
        """The gradients by the id of the model's parameter; they are forgotten here."""
        found, self.gradients = self.gradients, {}
        return found

    def _shares(self) -> list[list[tuple[nn.Parameter, nn.Parameter]]]:
        """The pairs of weights, shared out among threads."""
        pairs = {id(own): (own, worker) for own, worker in self._pairs}
        return [[pairs[id(own)] for own in share] for share in shares_of([own for own, _ in self._pairs])]


class _Known(torch.autograd.Function):
    """A scalar whose gradients with respect to some weights are known; the backward pass hands them out."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, grads: list[torch.Tensor], *_: torch.Tensor) -> torch.Tensor:
        ctx.grads = list(grads)
        grads.clear()
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, []
        factor = float(grad)
        return (None, None, *(grads if factor == 1.0 else [one.mul_(factor) for one in grads]))
