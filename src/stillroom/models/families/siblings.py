"""Mixtures of experts whose layers a dense family has too, but for the experts: what a dense student is made of.

A mixture adds, for a token x, ``Σ g_e(x) · down_e(act(gate_e x) · up_e x)`` over the experts e that its router chose. With
constant gates this is one feed-forward layer: the experts' gate and up matrices one above the other, their down matrices side
by side, each times its gate. So any family will do whose attention, norms, positions and factors are those of the mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import UnsupportedModel
from stillroom.models.families.family import head_width

if TYPE_CHECKING:
    from stillroom.models.types import ModelConfig

KEPT_OUT = ("architectures", "auto_map", "dtype", "model_type", "torch_dtype", "transformers_version")
"""Keys of a config that are the dense family's own."""


@dataclass(frozen=True)
class Sibling:
    """The dense family of a mixture.

    Attributes:
        family: Its ``model_type``.
        block: Path of the module of a layer that holds ``experts``.
        shared: Path of a feed-forward layer that every token goes through besides; empty where there is none.
        experts_width: The mixture's config key of one expert's intermediate size.
        experts_key: That of the number of experts.
        chosen_key: That of how many a token goes through.
        adjust: Sets what the dense config says otherwise.
    """

    family: str
    block: str = "mlp"
    shared: str = ""
    experts_width: str = "moe_intermediate_size"
    experts_key: str = "num_experts"
    chosen_key: str = "num_experts_per_tok"
    adjust: Callable[[Any, Any], None] = lambda _dense, _mixture: None


def _qwen3(dense: Any, mixture: Any) -> None:
    """Qwen 3's mixtures have the window in every layer or in none."""
    windowed = bool(getattr(mixture, "use_sliding_window", False)) and mixture.sliding_window is not None
    dense.use_sliding_window = windowed
    dense.sliding_window = mixture.sliding_window if windowed else None
    dense.layer_types = ["sliding_attention" if windowed else "full_attention"] * mixture.num_hidden_layers


def _dots1(dense: Any, mixture: Any) -> None:
    dense.layer_types = list(mixture.layer_types)
    dense.use_sliding_window = "sliding_attention" in dense.layer_types
    dense.sliding_window = mixture.sliding_window


SIBLINGS = {
    "qwen3_moe": Sibling("qwen3", adjust=_qwen3),
    "mixtral": Sibling("mistral", experts_width="intermediate_size", experts_key="num_local_experts"),
    "granitemoe": Sibling(
        "granite", "block_sparse_moe", experts_width="intermediate_size", experts_key="num_local_experts"
    ),
    "granitemoeshared": Sibling(
        "granite", "block_sparse_moe", "shared_mlp", experts_width="intermediate_size", experts_key="num_local_experts"
    ),
    "hunyuan_v1_moe": Sibling(
        "hunyuan_v1_dense", shared="mlp.shared_mlp", experts_width="intermediate_size", chosen_key="moe_topk"
    ),
    "dots1": Sibling("qwen3", shared="mlp.shared_experts", experts_key="n_routed_experts", adjust=_dots1),
}
"""By the mixture's ``model_type``. Others have none: OLMoE's norms are before its layers and OLMo 2's behind them; Qwen 2's
mixtures gate their shared expert by the token; gpt-oss has attention sinks; latent attention has no dense family."""


def sibling_of(config: ModelConfig) -> Sibling:
    """The dense family of a mixture of experts.

    Raises:
        UnsupportedModel: It is no mixture, or no dense family computes the rest as it does.
    """
    sibling = SIBLINGS.get(config.model_type)
    if sibling is None:
        raise UnsupportedModel(
            f"`student: {{kind: dense}}` makes one feed-forward layer of a layer's experts, and the family "
            f"`{config.model_type}` has no dense family whose other parts are the same.",
            f"Mixtures that have one: {', '.join(sorted(SIBLINGS))}. Or remove experts: "
            "`student: {kind: shrink, experts: N}`.",
        )
    return sibling


def dense_config(config: ModelConfig, intermediate_size: int) -> ModelConfig:
    """The config of the dense student of a mixture.

    Args:
        config: The mixture's.
        intermediate_size: Channels of each of its feed-forward layers.

    Raises:
        UnsupportedModel: As :func:`sibling_of`.
    """
    from transformers import CONFIG_MAPPING

    sibling = sibling_of(config)
    kind = CONFIG_MAPPING[sibling.family]
    known = kind().to_dict()
    said = {key: value for key, value in config.to_dict().items() if key in known and key not in KEPT_OUT}
    said |= {"intermediate_size": intermediate_size, "head_dim": head_width(config)}
    said.pop("layer_types", None)
    dense: Any = kind(**said)
    sibling.adjust(dense, config)
    found: ModelConfig = dense
    return found
