"""Prunes a model's widths: feed-forward channels, key/value groups of heads, hidden width.

What is left computes what the whole computed, as far as what is removed contributed nothing: norms over a width are
scaled for the entries they no longer see, and so are embeddings that are multiplied by the root of the width.

Legend: F channels, G key/value groups, H hidden width, D width of a head.
"""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stillroom.core.errors import UnsupportedModel
from stillroom.models.families.family import Family, head_width

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig


@dataclass(frozen=True)
class Widths:
    """What every layer keeps; None keeps everything.

    Attributes:
        channels: Feed-forward channels of each layer, ascending; the same number in each.
        groups: Key/value groups of each layer, ascending; the same number in each.
        hidden: Entries of the hidden width, ascending; one choice for the whole model.
        experts: Experts of each layer, ascending; the same number in each. Layers without experts take no notice.
    """

    channels: list[torch.Tensor] | None = None
    groups: list[torch.Tensor] | None = None
    hidden: torch.Tensor | None = None
    experts: list[torch.Tensor] | None = None

    @property
    def narrows(self) -> bool:
        """Whether anything is pruned."""
        return any(axis is not None for axis in (self.channels, self.groups, self.hidden, self.experts))


@torch.no_grad()
def narrow(model: CausalModel, family: Family, widths: Widths) -> CausalModel:
    """A new model with these widths.

    Args:
        model: A causal language model; left as it is.
        family: Its family.
        widths: What stays.

    Raises:
        UnsupportedModel: A parameter of the model is not in the family's table.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = _config(model.config, family, widths)
    like = model.get_input_embeddings().weight
    # On a GPU it is made there: the same matrices would else be in memory too. All weights come from the model: none is drawn.
    with like.device if like.device.type != "cpu" else contextlib.nullcontext(), no_init_weights():
        smaller: CausalModel = AutoModelForCausalLM.from_config(config, dtype=like.dtype)
    places = smaller.state_dict()
    missing, lost = {name: None for name in places if name not in OUTPUTS}, []
    # One at a time, so that what is pruned is not in memory twice.
    for name, tensor in _narrowed(model, family, widths, config):
        missing.pop(name, None)
        if name in places and places[name].shape == tensor.shape:
            places[name].copy_(tensor)
        else:
            lost.append(name)
    if missing or lost:
        raise UnsupportedModel(
            f"The family `{family.name}` cannot be narrowed: `{[*missing, *lost][0]}` does not fit.", ""
        )
    smaller.tie_weights()
    smaller.generation_config = copy.deepcopy(model.generation_config)
    return smaller.to(like.device).train(model.training)


OUTPUTS = ("lm_head.weight", "embed_out.weight")
"""Names of output matrices, which tied models have twice."""


def _narrowed(
    model: CausalModel, family: Family, widths: Widths, config: ModelConfig
) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's tensors by name, pruned, one after the other; ``config`` is the narrower model's."""
    from transformers.pytorch_utils import Conv1D

    epsilon = 1.0 if widths.hidden is None else config.rms_norm_eps / model.config.rms_norm_eps
    inside_layer = re.compile(rf"(?:^|\.){re.escape(family.stack.rpartition('.')[2])}\.(\d+)\.(.+)$")
    hidden = _Axis.of(widths.hidden, model.config.hidden_size)
    dtype = model.get_input_embeddings().weight.dtype
    for name, stored in model.state_dict().items():
        if model.config.tie_word_embeddings and name in OUTPUTS:
            continue
        # What is stored in fewer bits than the model computes in is not to be rounded by its new scale.
        wider = stored.is_floating_point() and stored.dtype.itemsize < dtype.itemsize
        tensor = stored.to(dtype) if wider else stored
        layer = inside_layer.search(name)
        if layer is not None:
            number, inside = int(layer.group(1)), layer.group(2)
            module, _, kind = inside.rpartition(".")
            if widths.experts is not None and (axis := _expert_axis(inside, tensor, family.experts(model.config))) >= 0:
                cut = tensor.index_select(axis, widths.experts[number].to(tensor.device))
                yield name, cut
                continue
            if module not in family.axes:
                if not family.uniform:
                    cut = tensor
                    yield name, cut
                    continue
                raise UnsupportedModel(
                    f"`{name}` is a parameter that Stillroom does not know of the family `{family.name}`.",
                    "Prune this model's layers and vocabulary only.",
                )
            rows, columns = (_axis(axis, model.config, family, widths, number) for axis in family.axes[module])
            if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) and kind == "weight":
                rows, columns = columns, rows  # its rows are inputs
            cut = _pick(tensor, rows, columns if kind == "weight" else None)
            cut = cut * _before_norm(family.axes, module, rows, epsilon)
            if family.axes[module][0] in ("norm", "query_norm", "key_norm") and rows is not None:
                cut = (cut + family.norm_offset) * rows.root - family.norm_offset
        elif hidden is None:
            cut = tensor
        elif name.endswith("embed_tokens.weight"):
            scale = hidden.root if family.scaled_embedding and hidden is not None else 1.0
            cut = _pick(tensor, None, hidden) * scale
        elif name.endswith("lm_head.weight"):
            cut = _pick(tensor, None, hidden)
        elif name.endswith("norm.weight"):
            cut = tensor
            if hidden is not None:
                # A tied output matrix carries the embedding's new scale, which the last norm takes back.
                tied = family.scaled_embedding and model.config.tie_word_embeddings
                scale = 1.0 if tied else hidden.root
                cut = (_pick(tensor, hidden, None) + family.norm_offset) * scale - family.norm_offset
        else:
            cut = tensor
        yield name, cut


EXPERT_ROWS = re.compile(
    r"(?:(?:^|\.)experts\.\w+|\.(?:gate|router)(?:\.wg|\.proj|\.layer)?\.(?:weight|bias)"
    r"|(?:e_score_correction_bias|expert_bias|per_expert_scale))$"
)
"""Parameters and buffers of a layer along whose first axis experts are (a bias that has it last, [1, E], too): the stacked
experts, the router's rows, and the bias by which experts are chosen."""


def _expert_axis(inside: str, tensor: torch.Tensor, experts: int) -> int:
    """The axis of a layer's tensor along which experts are; -1 where they do not."""
    if not EXPERT_ROWS.search(inside):
        return -1
    if tensor.dim() and tensor.shape[0] == experts:
        return 0
    return 1 if tensor.dim() == 2 and tensor.shape == (1, experts) else -1


def _config(config: ModelConfig, family: Family, widths: Widths) -> ModelConfig:
    config = copy.deepcopy(config)
    if family.uniform:
        config.head_dim = head_width(config)
    if widths.channels is not None:
        setattr(config, family.channels_key, len(widths.channels[0]))
    if widths.experts is not None:
        setattr(config, family.experts_key, len(widths.experts[0]))
    if widths.groups is not None:
        share = config.num_attention_heads // config.num_key_value_heads
        config.num_key_value_heads = len(widths.groups[0])
        config.num_attention_heads = share * config.num_key_value_heads
    if widths.hidden is not None:
        # The mean square over fewer entries is larger by the ratio of the widths; so must be what is added to it.
        config.rms_norm_eps = config.rms_norm_eps * config.hidden_size / len(widths.hidden)
        config.hidden_size = len(widths.hidden)
    return config


@dataclass(frozen=True)
class _Axis:
    """Entries that stay along an axis."""

    kept: torch.Tensor
    size: int

    @property
    def root(self) -> float:
        """What a norm's weight is multiplied by: over the kept entries the mean square is larger by size / kept."""
        return float((len(self.kept) / self.size) ** -0.5)

    @classmethod
    def of(cls, kept: torch.Tensor | None, size: int) -> _Axis | None:
        return None if kept is None else cls(kept, size)


def _axis(axis: str | None, config: ModelConfig, family: Family, widths: Widths, layer: int) -> _Axis | None:
    """The kept entries of an axis in a layer; None where all stay."""
    if axis in ("hidden", "norm"):
        return _Axis.of(widths.hidden, config.hidden_size)
    if axis in ("channels", "gated") and widths.channels is not None:
        kept = widths.channels[layer]
        size = family.channels(config)
        return _Axis(kept, size) if axis == "channels" else _Axis(torch.cat([kept, kept + size]), 2 * size)
    if axis in ("queries", "keys", "fused", "query_norm", "key_norm") and widths.groups is not None:
        width = head_width(config)
        share = config.num_attention_heads // config.num_key_value_heads
        groups = widths.groups[layer]
        queries = blocks(groups, share * width)
        keys = blocks(groups, width)
        q_size, k_size = config.num_attention_heads * width, config.num_key_value_heads * width
        if axis in ("queries", "query_norm"):
            return _Axis(queries, q_size)
        if axis in ("keys", "key_norm"):
            return _Axis(keys, k_size)
        return _Axis(torch.cat([queries, keys + q_size, keys + q_size + k_size]), q_size + 2 * k_size)
    return None


def _before_norm(axes: dict[str, tuple[str, str | None]], module: str, rows: _Axis | None, epsilon: float) -> float:
    """Factor on queries and keys that a norm follows, so that the model's one epsilon stays what it was beside them.

    With the config's epsilon larger by ``epsilon`` and n of N entries left, ``√(ε'/ε · n/N)`` keeps the ratio; the norm
    itself takes the factor out again.
    """
    norms = {
        "self_attn.q_proj": ("self_attn.q_norm", "self_attn.query_layernorm"),
        "self_attn.k_proj": ("self_attn.k_norm", "self_attn.key_layernorm"),
    }
    over = next((axes[norm][0] for norm in norms.get(module, ()) if norm in axes), None)
    if over is None:
        return 1.0
    share = len(rows.kept) / rows.size if rows is not None and over != "head" else 1.0
    return float((epsilon * share) ** 0.5)


def blocks(chosen: torch.Tensor, width: int) -> torch.Tensor:
    """Entries of the chosen blocks of ``width`` entries each."""
    return (chosen[:, None] * width + torch.arange(width, device=chosen.device)).flatten()


def _pick(tensor: torch.Tensor, rows: _Axis | None, columns: _Axis | None) -> torch.Tensor:
    if rows is not None:
        tensor = tensor.index_select(0, rows.kept.to(tensor.device))
    if columns is not None:
        tensor = tensor.index_select(1, columns.kept.to(tensor.device))
    return tensor
