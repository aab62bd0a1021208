"""How much each channel, head group and entry of the hidden width does, and which are kept.

Activation-based importance (Muralidharan et al. 2024, arXiv 2407.14679), measured in one forward pass over a
sample: a channel or a head matters by the energy of its activation times the energy of the weights that carry it on; an
entry of the hidden width by its energy in the normed stream, over all layers.

Legend: F channels, G key/value groups, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.core.errors import UnsupportedModel
from stillroom.corpus.sequences import Sequences
from stillroom.models.compute import exact
from stillroom.models.families.family import Family, head_width, matrix_of
from stillroom.models.forward import hidden_states
from stillroom.students.importance import texts
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
        experts: Share of the gates' weight that each expert of a layer got, [layers, E]; E is 0 for a dense model, and a layer
            without experts has zeros.
        tokens: Tokens that each expert of a layer was chosen for, [layers, E].
    """

    channels: torch.Tensor
    groups: torch.Tensor
    hidden: torch.Tensor
    channel_order: torch.Tensor | None = None
    group_order: torch.Tensor | None = None
    experts: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    tokens: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def lost(self, kept: list[int], widths: Widths) -> dict[str, float]:
        """Share of the energy that pruning removes along each axis, mean over the kept layers."""
        found = {}
        if widths.channels is not None:
            rows = [float(self.channels[i][c].sum()) for i, c in zip(kept, widths.channels, strict=True)]
            found["channels"] = 1 - sum(rows) / len(rows)
        if widths.groups is not None:
            rows = [float(self.groups[i][g].sum()) for i, g in zip(kept, widths.groups, strict=True)]
            found["groups"] = 1 - sum(rows) / len(rows)
        if widths.experts is not None:
            rows = [float(self.experts[i][e].sum()) for i, e in zip(kept, widths.experts, strict=True)]
            rows = [row for row, i in zip(rows, kept, strict=True) if float(self.experts[i].sum()) > 0]
            found["experts"] = 1 - sum(rows) / max(1, len(rows))
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
    attends = "groups" in family.cuts
    groups = family.groups(config)
    width = config.num_attention_heads * head_width(config) if attends else groups
    channels = torch.zeros(len(layers), family.channels(config), dtype=torch.float64)
    heads = torch.zeros(len(layers), width, dtype=torch.float64)
    mass = torch.zeros(len(layers), family.experts(config), dtype=torch.float64)
    tokens = torch.zeros_like(mass)
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
        if family.channels(config):
            watched.append((family.feed_forward_matrix(layer), into(channels[number], False)))
        if attends:
            watched.append((family.attention_matrix(layer), into(heads[number], False)))
        watched.append((layer, into(hidden, True)))
    for ids, positions, rows in texts(model, sample):
        with _inputs(watched, rows.to(device)), routed(layers, mass, tokens, rows.to(device)):
            hidden_states(model, ids.to(device), positions.to(device))
    for number, layer in enumerate(layers):
        if family.channels(config):
            channels[number] *= _column_energy(family.feed_forward_matrix(layer))
        if attends:
            heads[number] *= _column_energy(family.attention_matrix(layer))
    per_group = heads.view(len(layers), groups, -1).sum(2) if groups else heads
    return WidthImportance(_shares(channels), _shares(per_group), _shares(hidden), experts=_shares(mass), tokens=tokens)


@contextmanager
def routed(layers: nn.ModuleList, mass: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor) -> Iterator[None]:
    """Add, while the body runs one sequence, what each expert gets of the gates' weight, and how many tokens choose it.

    Experts are handed the chosen ones and their gates, [N, K] each; where a router gives each token all experts' gates, most
    of them 0, as Llama 4's does, those are taken.

    Args:
        layers: The model's.
        mass: [layers, E], added to.
        tokens: [layers, E], added to.
        rows: Which of the N tokens count.
    """
    count = mass.shape[1]

    def add(number: int, chosen: torch.Tensor, gates: torch.Tensor) -> None:
        picked, weights = chosen.reshape(-1, chosen.shape[-1])[rows], gates.reshape(-1, gates.shape[-1])[rows]
        index = picked.flatten().long().cpu()
        mass[number].index_add_(0, index, weights.flatten().cpu().double().abs())
        tokens[number].index_add_(0, index, torch.ones(len(index), dtype=torch.float64))

    def chosen_experts(number: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def run(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            chosen = next((value for value in given if not value.is_floating_point() and value.dim() >= 2), None)
            if chosen is None:
                return
            gates = next((value for value in given if value.is_floating_point() and value.shape == chosen.shape), None)
            if gates is not None:
                add(number, chosen, gates)

        return run

    def all_gates(number: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def run(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            found = output[0] if isinstance(output, tuple) else output
            if not tokens[number].any() or tokens[number].sum() == seen.get(number, -1):
                values = found.reshape(-1, found.shape[-1])[rows].cpu().double()
                if values.shape[1] == count:
                    mass[number] += values.abs().sum(0)
                    tokens[number] += (values != 0).sum(0)
                    seen[number] = float(tokens[number].sum())

        return run

    seen: dict[int, float] = {}
    handles = []
    if count:
        for number, layer in enumerate(layers):
            for name, module in layer.named_modules():
                last = name.rpartition(".")[2]
                if last == "experts":
                    handles.append(module.register_forward_pre_hook(chosen_experts(number), with_kwargs=True))
                elif last == "router" and type(module).__name__.startswith("Llama4"):
                    handles.append(module.register_forward_hook(all_gates(number)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def choose_widths(
    importance: WidthImportance,
    config: ModelConfig,
    kept: list[int],
    channels: int | None,
    groups: int | None,
    hidden: int | None,
    experts: int | None = None,
    family: Family | None = None,
) -> Widths:
    """The most important entries of each axis, in every kept layer its own.

    Args:
        importance: As measured.
        config: The teacher's config.
        kept: Indices of the layers that stay.
        channels: Feed-forward channels to keep; None keeps all.
        groups: Key/value groups to keep; None keeps all.
        hidden: Hidden width to keep; None keeps all.
        experts: Experts of a layer to keep; None keeps all.
        family: The teacher's family; None for one like Llama.

    Raises:
        UnsupportedModel: More is asked than the teacher has.
    """
    family = family or Family("llama")
    all_channels, all_groups, all_experts = family.channels(config), family.groups(config), family.experts(config)
    _at_most("intermediate_size", channels, all_channels)
    _at_most("kv_heads", groups, all_groups)
    _at_most("hidden_size", hidden, config.hidden_size)
    _at_most("experts", experts, all_experts)
    channel_scores = _scores(importance.channels, importance.channel_order)
    group_scores = _scores(importance.groups, importance.group_order)
    return Widths(
        [_top(channel_scores[i], channels) for i in kept] if _less(channels, all_channels) else None,
        [_top(group_scores[i], groups) for i in kept] if _less(groups, all_groups) else None,
        _top(importance.hidden, hidden) if _less(hidden, config.hidden_size) else None,
        [_top_experts(importance.experts[i], experts, config) for i in kept] if _less(experts, all_experts) else None,
    )


def _top_experts(mass: torch.Tensor, count: int | None, config: ModelConfig) -> torch.Tensor:
    """The experts with the most weight; as many of each group, where experts are chosen by groups."""
    groups = int(getattr(config, "n_group", None) or 1)
    assert count is not None
    each = len(mass) // groups
    parts = [_top(part, count // groups) + number * each for number, part in enumerate(mass.view(groups, each))]
    return torch.cat(parts)


@torch.no_grad()
def measure_orders(
    model: CausalModel,
    family: Family,
    sample: Sequences,
    importance: WidthImportance,
    moved: Callable[[], None] = lambda: None,
) -> WidthImportance:
    """Add the orders in which channels and groups can go, when what is left is repaired for what went.

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
    attends = "groups" in family.cuts
    block = config.num_attention_heads // family.groups(config) * head_width(config)
    channels, groups = [], []
    for layer in walk.layers:
        down = family.feed_forward_matrix(layer)
        output = family.attention_matrix(layer)
        names = [family.feed_forward_output, family.attention_output]
        results, caught = walk.run(inputs=names)
        ffn, attention = (caught[f"in:{name}"] for name in names)
        weights = 1.0 / walk.pick(results).square().mean(1).clamp_min(1e-12)
        channels.append(removal_order(ffn, weights, matrix_of(down), 1))
        # The order in which heads go is not asked of a family whose heads stay.
        order = removal_order(attention, weights, matrix_of(output), block) if attends else None
        groups.append(torch.arange(family.groups(config)) if order is None else order)
        walk.move(results)
        moved()
    return replace(importance, channel_order=torch.stack(channels), group_order=torch.stack(groups))


def removal_order(inputs: torch.Tensor, weights: torch.Tensor, matrix: torch.Tensor, block: int) -> torch.Tensor:
    """Blocks of a matrix's inputs in the order in which they can go, each time the cheapest after refitting the rest.

    Args:
        inputs: [N, F].
        weights: Weight of each row, [N].
        matrix: [H, F].
        block: Inputs that go together; they are side by side.

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
        goes = torch.zeros(len(left), dtype=torch.int8, device=gram.device)
        goes[gone] = 1
        # In their order, those that stay; how many they are is known, so that a GPU is not waited for.
        stays = goes.argsort(stable=True)[: len(left) - len(gone)]
        out, rest = blocks(gone, block), blocks(stays, block)
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
    energy: torch.Tensor = matrix_of(module).detach().float().square().sum(0).cpu().double()
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
