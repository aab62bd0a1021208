"""Makes a dense student of a mixture of experts (arXiv 2605.28207).

In each layer the experts that add most to the residual stream are joined into one feed-forward layer, each times its mean gate,
behind what all tokens go through anyway (shared experts). Then the least-squares repair fits the down matrix of each layer to
what the whole mixture adds (``heal.py``), so that constant gates and experts that went are repaired as far as a matrix can.

Legend: E experts, I channels of one, H hidden size, N tokens, F channels of the student.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.core.errors import RecipeError, UnsupportedModel
from stillroom.models.compute import exact
from stillroom.models.families.registry import families
from stillroom.models.families.siblings import Sibling, dense_config, sibling_of
from stillroom.models.forward import hidden_states
from stillroom.students.heal import heal
from stillroom.students.importance import Sample, judged_kl, judged_logprobs, texts
from stillroom.students.narrow import Widths

if TYPE_CHECKING:
    from stillroom.corpus.sequences import Sequences
    from stillroom.models.types import CausalModel, ModelConfig
    from stillroom.recipe.student import DenseStudent

SAME = 1e-3
"""Difference of hidden states, in their standard deviations, up to which the two families compute the same."""


@dataclass(frozen=True)
class Parts:
    """Sizes of a mixture's feed-forward layers, from its config.

    Attributes:
        experts: E.
        chosen: Experts that a token goes through.
        width: I.
        shared: Channels that every token goes through besides, at most over the layers.
        dense: Channels of layers without experts, at most; 0 where all have them.
    """

    experts: int
    chosen: int
    width: int
    shared: int
    dense: int

    @classmethod
    def of(cls, config: ModelConfig) -> Parts:
        """Read them off a model without weights.

        Raises:
            UnsupportedModel: No dense family has the mixture's other parts.
        """
        from transformers import AutoModelForCausalLM

        sibling = sibling_of(config)
        with torch.device("meta"):
            model: CausalModel = AutoModelForCausalLM.from_config(config)
        shared = dense = width = 0
        for layer in families()[sibling.family].layers(model):
            block = layer.get_submodule(sibling.block)
            experts = getattr(block, "experts", None)
            if experts is None:
                dense = max(dense, _feed_forward(block)[0].shape[0])
                continue
            width = experts.down_proj.shape[2]
            module = _shared(layer, sibling)
            if module is not None:
                shared = max(shared, _feed_forward(module)[0].shape[0])
        count = int(getattr(config, sibling.experts_key))
        return cls(count, int(getattr(config, sibling.chosen_key)), width, shared, dense)

    def kept(self, asked: int | None) -> tuple[int, int]:
        """Experts that are joined in a layer, and the student's intermediate size.

        Args:
            asked: ``student.intermediate_size``; None takes as many experts as a token goes through.

        Raises:
            RecipeError: The size does not come out of whole experts.
        """
        if not self.width:
            raise RecipeError("No layer of the teacher has experts.", "Prune it: `student: {kind: shrink}`.")
        if asked is None:
            size = self.shared + self.chosen * self.width
            return self.chosen, max(size, self.dense)
        count, rest = divmod(asked - self.shared, self.width)
        least = max(self.shared + self.width, self.dense)
        most = self.shared + self.experts * self.width
        if asked < least or count > self.experts or (rest and asked != self.dense):
            near = [self.shared + n * self.width for n in (count, count + 1) if 0 < n <= self.experts]
            near = [size for size in near if size >= least] or [most if asked > most else least]
            behind = f" behind {self.shared} shared channels" if self.shared else ""
            raise RecipeError(
                f"`student.intermediate_size` is {asked}, and a dense layer is made of whole experts of {self.width} "
                f"channels{behind}, at least {least} and at most {most} channels.",
                f"Give {' or '.join(map(str, near))}.",
            )
        return count, asked


@dataclass(frozen=True)
class Use:
    """What the experts do on a sample.

    Attributes:
        gates: Mean gate over all tokens, 0 where an expert was not chosen, [layers, E].
        added: Share of what a layer's experts add, by the norm of each one's output times its gate, [layers, E].
        tokens: Tokens that chose each, [layers, E].
    """

    gates: torch.Tensor
    added: torch.Tensor
    tokens: torch.Tensor

    @property
    def routed(self) -> list[int]:
        """Layers that have experts."""
        return [index for index in range(len(self.tokens)) if float(self.tokens[index].sum()) > 0]

    def lost(self, kept: int) -> float:
        """Share of what the experts add that goes with all but the best ``kept`` of each layer, mean over layers."""
        rows = self.added[self.routed].sort(1, descending=True).values
        return float(rows[:, kept:].sum(1).mean()) if len(rows) else 0.0


@dataclass(frozen=True)
class Densified:
    """A dense student and how it came about.

    Attributes:
        model: The student; its vocabulary is the teacher's.
        unrepaired: The same before the repair; None where the model is that.
        kept: Experts of each layer that were joined; empty for a layer that has none.
        use: What was measured.
        kl: KL to the teacher before the repair, nats per token.
        healed_kl: After it; None where there was none.
        repair_tokens: Tokens that the repair was fitted on.
    """

    model: CausalModel
    unrepaired: CausalModel | None
    kept: list[list[int]]
    use: Use
    kl: float
    healed_kl: float | None
    repair_tokens: int


@torch.no_grad()
def densify(
    teacher: CausalModel,
    student: DenseStudent,
    train: Sequences,
    moved: Callable[[], None] = lambda: None,
) -> Densified:
    """The dense student of a mixture of experts.

    Args:
        teacher: The mixture, float32.
        student: The recipe's section.
        train: Training text; its first sequences are the sample.
        moved: Called after every repaired layer.

    Raises:
        UnsupportedModel: No dense family computes the rest as the mixture does.
        RecipeError: The intermediate size is impossible.
    """
    sibling, parts = sibling_of(teacher.config), Parts.of(teacher.config)
    count, size = parts.kept(student.intermediate_size)
    family = families()[sibling.family]
    sample = Sample.of(train, student.importance.tokens, student.importance.repair_tokens)
    use = measure_use(teacher, sibling, sample.fit)
    model, kept = join(teacher, sibling, use, count, size)
    require_same(teacher, model, sibling, sample.judge)
    reference = judged_logprobs(teacher, sample.judge)
    kl = judged_kl(reference, model, sample.judge)
    if not student.heal:
        return Densified(model, None, kept, use, kl, None, 0)
    repaired = copy.deepcopy(model)
    layers = len(family.layers(model))
    everything = Widths(channels=[torch.arange(size)] * layers)
    heal(repaired, teacher, family, list(range(layers)), sample.repair, everything, moved)
    healed_kl = judged_kl(reference, repaired, sample.judge)
    if healed_kl >= kl:
        return Densified(model, None, kept, use, kl, healed_kl, sample.repair.tokens)
    return Densified(repaired, model, kept, use, kl, healed_kl, sample.repair.tokens)


@torch.no_grad()
def measure_use(model: CausalModel, sibling: Sibling, sample: Sequences) -> Use:
    """Run the mixture over a sample and measure its experts."""
    layers = families()[sibling.family].layers(model)
    experts = int(getattr(model.config, sibling.experts_key))
    gates, added, tokens = (torch.zeros(len(layers), experts, dtype=torch.float64) for _ in range(3))
    count = 0
    rows: list[torch.Tensor] = []

    def watch(number: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def run(module: nn.Module, args: tuple[Any, ...]) -> None:
            states, chosen, weights = args
            states, chosen, weights = states[rows[0]], chosen[rows[0]], weights[rows[0]]
            for index in chosen.unique().tolist():
                token, place = (chosen == index).nonzero(as_tuple=True)
                gate = exact(weights[token, place]).abs()
                norms = exact(_expert(module, index, states[token]).norm(dim=1))
                gates[number, index] += float(gate.sum())
                added[number, index] += float((gate * norms).sum())
                tokens[number, index] += len(token)

        return run

    handles = []
    for number, layer in enumerate(layers):
        module = getattr(layer.get_submodule(sibling.block), "experts", None)
        if module is not None:
            handles.append(module.register_forward_pre_hook(watch(number)))
    try:
        for ids, positions, real in texts(model, sample):
            rows[:] = [real]
            hidden_states(model, ids, positions)
            count += len(real)
    finally:
        for handle in handles:
            handle.remove()
    return Use(gates / max(1, count), added / added.sum(1, keepdim=True).clamp_min(1e-30), tokens)


@torch.no_grad()
def join(
    teacher: CausalModel, sibling: Sibling, use: Use, count: int, size: int
) -> tuple[CausalModel, list[list[int]]]:
    """The dense model, before any repair, and which experts of each layer are in it.

    Channels that a layer has no experts for (a dense first layer that is narrower) add nothing at first, and can learn.

    Raises:
        UnsupportedModel: A tensor of the mixture has no place in the dense family.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = dense_config(teacher.config, size)
    like = next(teacher.parameters())
    # Every weight comes from the mixture or is written by `_fill`: none is drawn here.
    with no_init_weights():
        model: CausalModel = AutoModelForCausalLM.from_config(config, dtype=like.dtype).to(like.device)
    family = families()[sibling.family]
    sources, targets = family.layers(teacher), family.layers(model)
    tensors = teacher.state_dict()
    own = set(model.state_dict())
    expected = {name for name in own if not _is_feed_forward(name)}
    tied = "lm_head.weight" if config.tie_word_embeddings else ""
    lost = sorted(expected - set(tensors) - {tied})
    extra = sorted(
        name
        for name in tensors
        if name not in expected and not _is_feed_forward(name) and not _of_experts(name, sibling)
    )
    if lost or extra:
        name = (lost or extra)[0]
        raise UnsupportedModel(
            f"`{name}` has no counterpart: the family `{teacher.config.model_type}` cannot be made dense as it is.",
            "Remove experts instead: `student: {kind: shrink, experts: N}`.",
        )
    model.load_state_dict({name: tensors[name] for name in expected if name in tensors}, strict=False)
    generator = torch.Generator().manual_seed(0)
    spread = float(getattr(config, "initializer_range", None) or 0.02)
    chosen: list[list[int]] = []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        block = source.get_submodule(sibling.block)
        experts = getattr(block, "experts", None)
        gate, up, down = [], [], []
        kept: list[int] = []
        whole = _shared(source, sibling) if experts is not None else block
        if whole is not None:
            matrices = _feed_forward(whole)
            gate, up, down = [matrices[0]], [matrices[1]], [matrices[2]]
        if experts is not None:
            # Experts that were never chosen come last: nothing is known of them.
            order = sorted(range(len(use.added[number])), key=lambda index: (-float(use.added[number, index]), index))
            kept = sorted(order[:count])
            for index in kept:
                both = experts.gate_up_proj[index]
                half = len(both) // 2
                gate.append(both[:half])
                up.append(both[half:])
                down.append(experts.down_proj[index] * float(use.gates[number, index]))
        _fill(target.mlp, torch.cat(gate), torch.cat(up), torch.cat(down, 1), spread, generator)
        chosen.append(kept)
    model.tie_weights()
    model.generation_config = copy.deepcopy(teacher.generation_config)
    return model.eval(), chosen


def require_same(teacher: CausalModel, model: CausalModel, sibling: Sibling, sample: Sequences) -> None:
    """Prove that the dense family computes everything but the feed-forward layers as the mixture does: with the student's
    put into the mixture, both give the same hidden states.

    Raises:
        UnsupportedModel: They do not.
    """
    family = families()[sibling.family]
    layers = family.layers(teacher)
    before = []
    try:
        for source, target in zip(layers, family.layers(model), strict=True):
            before.append((source, sibling.block, source.get_submodule(sibling.block)))
            setattr(source, sibling.block, target.mlp)
            if sibling.shared and not sibling.shared.startswith(f"{sibling.block}."):
                before.append((source, sibling.shared, source.get_submodule(sibling.shared)))
                setattr(source, sibling.shared, _Nothing())
        one = slice(0, 1)
        device = next(model.parameters()).device
        ids, positions = sample.ids[one].to(device), sample.positions[one].to(device)
        real = (sample.segments[0] >= 0).to(device)
        expected = hidden_states(teacher, ids, positions)[0, real].float()
        found = hidden_states(model, ids, positions)[0, real].float()
    finally:
        for source, name, module in before:
            setattr(source, name, module)
    worst = float((found - expected).abs().max() / expected.std())
    if not worst <= SAME:
        raise UnsupportedModel(
            f"The family `{sibling.family}` does not compute the other parts of this `{teacher.config.model_type}` model as it "
            f"does: hidden states differ by {worst:.2g} of their spread.",
            "Remove experts instead: `student: {kind: shrink, experts: N}`.",
        )


class _Nothing(nn.Module):
    """Adds nothing."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(states)


def _expert(experts: nn.Module, index: int, states: torch.Tensor) -> torch.Tensor:
    """Output of one expert without its gate, [N, H]."""
    module: Any = experts
    gate, up = nn.functional.linear(states, module.gate_up_proj[index]).chunk(2, dim=-1)
    out: torch.Tensor = nn.functional.linear(module.act_fn(gate) * up, module.down_proj[index])
    return out


def _shared(layer: nn.Module, sibling: Sibling) -> nn.Module | None:
    """The feed-forward layer beside a layer's experts; None where there is none."""
    if not sibling.shared:
        return None
    module: Any = layer
    for part in sibling.shared.split("."):
        module = getattr(module, part, None)
    return module if isinstance(module, nn.Module) else None


def _feed_forward(module: nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gate and up [F, H] and down [H, F] of a feed-forward layer."""
    owner: Any = module
    if hasattr(module, "input_linear"):
        both = owner.input_linear.weight
        half = len(both) // 2
        return both[:half], both[half:], owner.output_linear.weight
    return owner.gate_proj.weight, owner.up_proj.weight, owner.down_proj.weight


def _fill(
    module: Any, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, spread: float, generator: torch.Generator
) -> None:
    """Write a feed-forward layer; channels beyond those given start at random in front of a down matrix of zeros."""
    used = len(gate)
    for matrix, values in ((module.gate_proj.weight, gate), (module.up_proj.weight, up)):
        matrix[:used] = values
        matrix[used:] = torch.randn(matrix[used:].shape, generator=generator).to(matrix) * spread
    module.down_proj.weight.zero_()
    module.down_proj.weight[:, :used] = down
    for name in ("gate_proj", "up_proj", "down_proj"):
        bias = getattr(module, name).bias
        if bias is not None:
            bias.zero_()


def _is_feed_forward(name: str) -> bool:
    """Whether a tensor's name is that of a plain feed-forward layer, in either family."""
    return name.endswith(tuple(f".mlp.{part}_proj.weight" for part in ("gate", "up", "down")))


def _of_experts(name: str, sibling: Sibling) -> bool:
    """Whether a tensor of the mixture belongs to its experts, its router, or what all tokens go through beside them."""
    inside = f".{sibling.block}."
    beside = f".{sibling.shared}." if sibling.shared else inside
    return inside in name or beside in name
