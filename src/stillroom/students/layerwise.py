"""Runs a model layer by layer over a sample, holding one state per token.

Legend: L tokens of a sequence, N real tokens of a sample, H hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import fast_bfloat16
from stillroom.models.families.family import Family
from stillroom.models.forward import hidden_states
from stillroom.models.passes import attention_of

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a layer takes besides the residual stream, by position and by name."""


class Layerwise:
    """A model that is advanced over a sample, one layer at a time.

    Args:
        model: A causal language model.
        family: Its family.
        sample: Sequences; each is run by itself, so that memory holds one sequence's activations.
        rounded: Compute the matrix products of a float32 model's layers in bfloat16, where a CPU has instructions for that: it
            takes a quarter of their time. The stream between layers stays float32.
    """

    def __init__(self, model: CausalModel, family: Family, sample: Sequences, *, rounded: bool = False) -> None:
        self.model = model
        self.layers = family.layers(model)
        device = next(model.parameters()).device
        self.rounded = rounded and device.type == "cpu" and fast_bfloat16(device.type)
        """Whether products are computed in bfloat16."""
        self.real = [row.nonzero().squeeze(1).to(device) for row in sample.segments >= 0]
        self.states: list[torch.Tensor] = []
        """Input of the next layer, [1, L, H] a sequence."""
        self._arguments: list[list[Arguments]] = []
        self.place = 0
        """The next layer."""
        for index in range(len(sample)):
            one = slice(index, index + 1)
            state, arguments = _enter(model, self.layers, sample.ids[one].to(device), sample.positions[one].to(device))
            self.states.append(state)
            self._arguments.append(arguments)

    @property
    def stream(self) -> torch.Tensor:
        """The residual stream before the next layer at every real token, [N, H] float32."""
        return self.pick(self.states)

    def pick(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The real tokens of tensors that have one entry a sequence, [N, …] float32."""
        return torch.cat([part.flatten(0, -2)[rows] for part, rows in zip(parts, self.real, strict=True)]).float()

    def run(
        self, inputs: Sequence[str] = (), outputs: Sequence[str] = (), upto: str | None = None
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        """Run the next layer without moving on.

        Args:
            inputs: Modules inside the layer whose input is wanted.
            outputs: Modules whose output is wanted.
            upto: The last module that has to run; what is computed behind it is left out, and there is no output.

        Returns:
            The layer's output a sequence, and what was caught as ``{"in:NAME" or "out:NAME": [N, width]}``.
        """
        layer = self.layers[self.place]
        results = []
        caught: dict[str, list[torch.Tensor]] = {f"in:{name}": [] for name in inputs}
        caught.update({f"out:{name}": [] for name in outputs})
        with _catching(layer, caught), _ending_behind(layer, upto):
            for state, arguments in zip(self.states, self._arguments, strict=True):
                more, named = arguments[self.place]
                with (
                    torch.autocast("cpu", torch.bfloat16, enabled=self.rounded),
                    attention_of(self.model, named),
                    suppress(_Enough),
                ):
                    result = layer(state, *more, **named)
                    results.append(result[0] if isinstance(result, tuple) else result)
        return results, {name: self.pick(parts) for name, parts in caught.items()}

    def move(self, results: list[torch.Tensor]) -> None:
        """Take a layer's outputs as the next layer's inputs."""
        self.states = results
        self.place += 1

    def advance(self, upto: int) -> None:
        """Run layers until ``upto`` is the next."""
        while self.place < upto:
            self.move(self.run()[0])

    def add(self, parts: torch.Tensor, results: list[torch.Tensor], scale: float = 1.0) -> list[torch.Tensor]:
        """Layer outputs with ``scale`` times [N, H] added at the real tokens."""
        changed = []
        begin = 0
        for result, rows in zip(results, self.real, strict=True):
            result = result.clone()
            result[0, rows] += scale * parts[begin : begin + len(rows)].to(result.dtype)
            begin += len(rows)
            changed.append(result)
        return changed


def _enter(
    model: CausalModel, layers: nn.ModuleList, ids: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, list[Arguments]]:
    """What the first layer takes, and the other arguments (masks, rotations) of every layer, without running any."""
    arguments: list[Arguments] = []
    states: list[torch.Tensor] = []

    def pass_through(state: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        if not states:
            states.append(state)
        arguments.append((more, named))
        return state

    for layer in layers:
        layer.forward = pass_through
    try:
        hidden_states(model, ids, positions)
    finally:
        for layer in layers:
            del layer.forward  # the class's own comes back
    return states[0], arguments


class _Enough(Exception):
    """Everything that was wanted of a layer has been computed."""


@contextmanager
def _ending_behind(layer: nn.Module, name: str | None) -> Iterator[None]:
    """Leave out what a layer computes behind a module."""
    if name is None:
        yield
        return

    def end(*_: Any) -> None:
        raise _Enough

    handle = layer.get_submodule(name).register_forward_hook(end)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _catching(layer: nn.Module, caught: dict[str, list[torch.Tensor]]) -> Iterator[None]:
    handles = []
    for key, parts in caught.items():
        side, _, name = key.partition(":")
        module = layer.get_submodule(name)
        if side == "in":
            handles.append(module.register_forward_pre_hook(lambda _m, args, parts=parts: parts.append(args[0])))
        else:
            handles.append(module.register_forward_hook(lambda _m, _a, output, parts=parts: parts.append(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
