"""Forward passes over packed sequences: to hidden states, and from there to logits.

Legend: B sequences, L tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stillroom.models import stack
from stillroom.models.attention import applies, blocks_of, packed

if TYPE_CHECKING:
    from stillroom.models.types import Body, CausalModel


def body(model: CausalModel) -> Body:
    """The network under the output layer."""
    return model.base_model


def hidden_states(model: CausalModel, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Final, normed hidden states [B, L, H] of packed sequences.

    Documents are kept apart: positions that start again at 0 make the attention mask block-diagonal.

    Args:
        model: A Hugging Face causal language model.
        ids: Token ids, [B, L].
        positions: Position of each token inside its segment, [B, L].
    """
    if ids.device.type == "cpu" and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        layers = stack.layers_of(model)
        if layers is not None:
            return stack.hidden_states(model, layers, ids, positions)
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    if applies(model, ids):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else next(model.parameters()).dtype
        with packed(model):
            result: torch.Tensor = body(model)(**inputs, blocks=blocks_of(positions, dtype)).last_hidden_state
        return result
    result = body(model)(**inputs).last_hidden_state
    return result


@dataclass(frozen=True)
class Head:
    """The output layer: ``logits = softcap(scale · (hidden @ matrix.T + bias))``.

    Attributes:
        matrix: Output matrix, [V, H]; the embedding itself where they are tied.
        bias: [V], or None.
        scale: Factor on the logits (Granite divides them by ``logits_scaling``; 1 elsewhere).
        softcap: Gemma 2's cap c in ``c · tanh(logits / c)``, or None.
    """

    matrix: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def finish(self, products: torch.Tensor) -> torch.Tensor:
        """Logits of ``hidden @ matrix.T + bias``, float32."""
        if self.scale != 1.0:
            products = products * self.scale
        return products if self.softcap is None else self.softcap * torch.tanh(products / self.softcap)


def output_head(model: CausalModel) -> Head:
    """The output layer of a model, with what its family does to logits."""
    config = model.config
    layer = model.get_output_embeddings()
    softcap = getattr(config, "final_logit_softcapping", None)
    scaling = getattr(config, "logits_scaling", None)
    return Head(layer.weight, layer.bias, 1.0 / float(scaling) if scaling else 1.0, float(softcap) if softcap else None)


def logits_from_hidden(model: CausalModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [..., V] in float32 of hidden states [..., H]."""
    head = output_head(model)
    return head.finish(torch.nn.functional.linear(hidden, head.matrix, head.bias).float())
