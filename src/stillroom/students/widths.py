"""How much each channel, head group and entry of the hidden width does, and which are kept.

Activation-based importance (Muralidharan et al. 2024, arXiv 2407.14679), measured in one forward pass over a
sample: a channel or a head matters by the energy of its activation times the energy of the weights that carry it on; an
entry of the hidden width by its energy in the normed stream, over all layers.

Legend: F channels, G key/value groups, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.core.errors import UnsupportedModel
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import exact
from stillroom.models.families.family import Family, head_width
from stillroom.models.forward import hidden_states
from stillroom.students.layerwise import Layerwise
from stillroom.students.narrow import Widths, blocks

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig

ORDER_RIDGE = 0.01
"""Added to the inputs' second moments, as a share of their mean."""


@dataclass(frozen=True)
class WidthImportance:
    """Shares of the energy: each row sums to 1.

    Attributes:
        channels: [layers, F].
        groups: [layers, G].
        hidden: [H].
        channel_order: Channels of each layer in the order in which they can go, [layers, F]; None where energy decides.
        group_order: The same of key/value groups, [layers, G].
    """

    channels: torch.Tensor
    groups: torch.Tensor
    hidden: torch.Tensor
    channel_order: torch.Tensor | None = None
    group_order: torch.Tensor | None = None

    def lost(self, kept: list[int], widths: Widths) -> dict[str, float]:
        """Share of the energy that a cut removes along each axis, mean over the kept layers."""
        found = {}
        if widths.channels is not None:
            rows = [float(self.channels[i][c].sum()) for i, c in zip(kept, widths.channels, strict=True)]
            found["channels"] = 1 - sum(rows) / len(rows)
        if widths.groups is not None:
            rows = [float(self.groups[i][g].sum()) for i, g in zip(kept, widths.groups, strict=True)]
            found["groups"] = 1 - sum(rows) / len(rows)
        if widths.hidden is not None:
            found["hidden"] = 1 - float(self.hidden[widths.hidden].sum())
        return found


@torch.no_grad()
def measure_widths(model: CausalModel, family: Family, sample: Sequences) -> WidthImportance:
    """Measure a model in one pass over a sample.

    Args:
        model: The teacher.
        family: Its family.
        sample: Sequences.
    """
    layers = family.layers(model)
    config = model.config
    device = next(model.parameters()).device
    channels = torch.zeros(len(layers), config.intermediate_size, dtype=torch.float64)
    heads = torch.zeros(len(layers), config.num_attention_heads * head_width(config), dtype=torch.float64)
    hidden = torch.zeros(config.hidden_size, dtype=torch.float64)

    def into(total: torch.Tensor, normed: bool) -> Callable[[torch.Tensor], None]:
        def take(values: torch.Tensor) -> None:
            square = values.detach().float().square()
            if normed:
                square = square / square.mean(-1, keepdim=True).clamp_min(1e-12)
            total.add_(square.sum(dim=0).cpu().double())

        return take

    watched: list[tuple[nn.Module, Callable[[torch.Tensor], None]]] = []
    for number, layer in enumerate(layers):
        watched.append((family.feed_forward_matrix(layer), into(channels[number], False)))
        watched.append((family.attention_matrix(layer), into(heads[number], False)))
        watched.append((layer, into(hidden, True)))
    for index in range(len(sample)):
        one = slice(index, index + 1)
        rows = (sample.segments[index] >= 0).nonzero().squeeze(1).to(device)
        with _inputs(watched, rows):
            hidden_states(model, sample.ids[one].to(device), sample.positions[one].to(device))
    for number, layer in enumerate(layers):
        channels[number] *= _column_energy(family.feed_forward_matrix(layer))
        heads[number] *= _column_energy(family.attention_matrix(layer))
    groups = heads.view(len(layers), config.num_key_value_heads, -1).sum(2)
    return WidthImportance(_shares(channels), _shares(groups), _shares(hidden))


def choose_widths(
    importance: WidthImportance,
    config: ModelConfig,
    kept: list[int],
    channels: int | None,
    groups: int | None,
    hidden: int | None,
) -> Widths:
    """The most important entries of each axis, in every kept layer its own.

    Args:
        importance: As measured.
        config: The teacher's config.
        kept: Indices of the layers that stay.
        channels: Feed-forward channels to keep; None keeps all.
        groups: Key/value groups to keep; None keeps all.
        hidden: Hidden width to keep; None keeps all.

    Raises:
        UnsupportedModel: More is asked than the teacher has.
    """
    _at_most("ffn_width", channels, config.intermediate_size)
    _at_most("key_value_groups", groups, config.num_key_value_heads)
    _at_most("hidden_width", hidden, config.hidden_size)
    channel_scores = _scores(importance.channels, importance.channel_order)
    group_scores = _scores(importance.groups, importance.group_order)
    return Widths(
        [_top(channel_scores[i], channels) for i in kept] if _less(channels, config.intermediate_size) else None,
        [_top(group_scores[i], groups) for i in kept] if _less(groups, config.num_key_value_heads) else None,
        _top(importance.hidden, hidden) if _less(hidden, config.hidden_size) else None,
    )


@torch.no_grad()
def measure_orders(
    model: CausalModel,
    family: Family,
    sample: Sequences,
    importance: WidthImportance,
    moved: Callable[[], None] = lambda: None,
) -> WidthImportance:
    """Add the orders in which channels and groups can go, when what is left makes up for what went.

    A channel that others can stand in for costs little however large it is. With the inputs' second moments H, removing
    input j and fitting the matrix W again costs ``|W_j|² / [H⁻¹]_jj`` (the optimal brain surgeon; for blocks, SlimGPT:
    arXiv 2412.18110). Each layer's inputs are those of the whole teacher.

    Args:
        model: The teacher.
        family: Its family.
        sample: Sequences.
        importance: As measured before.
        moved: Called after every layer.
    """
    walk = Layerwise(model, family, sample)
    config = model.config
    block = config.num_attention_heads // config.num_key_value_heads * head_width(config)
    channels, groups = [], []
    for layer in walk.layers:
        down = family.feed_forward_matrix(layer)
        output = family.attention_matrix(layer)
        names = [family.feed_forward_output, family.attention_output]
        results, caught = walk.run(inputs=names)
        ffn, attention = (caught[f"in:{name}"] for name in names)
        weights = 1.0 / walk.pick(results).square().mean(1).clamp_min(1e-12)
        channels.append(removal_order(ffn, weights, down.weight, 1))
        groups.append(removal_order(attention, weights, output.weight, block))
        walk.move(results)
        moved()
    return replace(importance, channel_order=torch.stack(channels), group_order=torch.stack(groups))


def removal_order(inputs: torch.Tensor, weights: torch.Tensor, matrix: torch.Tensor, block: int) -> torch.Tensor:
    """Blocks of a matrix's inputs in the order in which they can go, each time the cheapest after refitting the rest.

    Args:
        inputs: [N, F].
        weights: Weight of each row, [N].
        matrix: [H, F].
        block: Inputs that go together; they lie side by side.

    Returns:
        Numbers of blocks, [F / block]. Single inputs go several at a time, a twenty-fourth of all.
    """
    gram = exact(inputs.T @ (inputs * weights[:, None]))
    gram.diagonal().add_(ORDER_RIDGE * gram.diagonal().mean() + 1e-12)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    work = exact(matrix.detach()).clone()
    count = len(gram) // block
    step = max(1, count // 24) if block == 1 else 1
    left = torch.arange(count, device=gram.device)
    order: list[torch.Tensor] = []
    while len(left) > 1:
        if block == 1:
            costs = work.square().sum(0) / inverse.diagonal()
        else:
            squares = inverse.view(len(left), block, len(left), block).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            parts = work.view(len(work), len(left), block).permute(1, 2, 0)  # [blocks, block, H]
            costs = (parts * torch.cholesky_solve(parts, torch.linalg.cholesky(squares))).sum((1, 2))
        gone = costs.topk(min(step, len(left) - 1), largest=False).indices
        stays = torch.ones(len(left), dtype=torch.bool, device=gram.device)
        stays[gone] = False
        out, rest = blocks(gone, block), blocks(stays.nonzero().squeeze(1), block)
        # Eliminate the blocks from the inverse and let the rest take over what they carried.
        into = torch.cholesky_solve(inverse[out][:, rest], torch.linalg.cholesky(inverse[out][:, out]))
        work = work[:, rest] - work[:, out] @ into
        inverse = inverse[rest][:, rest] - inverse[rest][:, out] @ into
        order.append(left[gone])
        left = left[stays]
    return torch.cat([*order, left]).cpu()


def _scores(energy: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """Scores of which the highest stay: the place in the order of removal, or else the energy."""
    if order is None:
        return energy
    places = torch.arange(order.shape[1], dtype=torch.float64).expand_as(order)
    return torch.zeros(order.shape, dtype=torch.float64).scatter_(1, order, places)


def _less(asked: int | None, there: int) -> bool:
    return asked is not None and asked < there


def _at_most(key: str, asked: int | None, there: int) -> None:
    if asked is not None and asked > there:
        raise UnsupportedModel(f"`student.{key}` is {asked}, and the teacher has {there}.", f"Ask for at most {there}.")


def _top(scores: torch.Tensor, count: int | None) -> torch.Tensor:
    assert count is not None
    return scores.topk(count).indices.sort().values


def _column_energy(module: nn.Linear) -> torch.Tensor:
    energy: torch.Tensor = module.weight.detach().float().square().sum(0).cpu().double()
    return energy


def _shares(energy: torch.Tensor) -> torch.Tensor:
    return energy / energy.sum(-1, keepdim=True).clamp_min(1e-30)


@contextmanager
def _inputs(watched: list[tuple[nn.Module, Callable[[torch.Tensor], None]]], rows: torch.Tensor) -> Iterator[None]:
    """Hand the inputs of modules at the chosen rows to their takers while the body runs one sequence."""

    def hook(take: Callable[[torch.Tensor], None]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def run(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = args[0] if args else kwargs["hidden_states"]
            take(values[0, rows])

        return run

    handles = [module.register_forward_pre_hook(hook(take), with_kwargs=True) for module, take in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
