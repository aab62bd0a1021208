"""The types of models, configs and tokenizers as transformers makes them, narrowed to causal language models.

For annotations only: import from here under ``TYPE_CHECKING``. The classes do not exist at run time, where every object is
transformers' own. They say what a pruned, trained and exported model must have, which transformers' base classes leave open:
the sizes in a config, a stack of layers, an embedding and an output matrix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Protocol, Self

    import torch
    from torch import nn
    from transformers import Cache, GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    Tokenizer = PreTrainedTokenizerFast
    """A fast tokenizer: one with a ``backend_tokenizer``."""

    class ModelConfig(PreTrainedConfig):
        """A config with the sizes that every family here has. What only some families have is read by ``getattr``."""

        vocab_size: int
        hidden_size: int
        intermediate_size: int
        num_hidden_layers: int
        num_attention_heads: int
        num_key_value_heads: int
        head_dim: int
        max_position_embeddings: int
        rms_norm_eps: float
        tie_word_embeddings: bool

    class States(Protocol):
        """What a body returns: final, normed hidden states, [B, L, H]."""

        last_hidden_state: torch.Tensor

    class Prediction(Protocol):
        """What a model returns: logits, [B, L, V], and the KV cache (keys and values), if one was asked for."""

        logits: torch.Tensor
        past_key_values: Cache | None

    class Body(nn.Module):
        """The network under the output layer."""

        layers: nn.ModuleList
        norm: nn.Module
        vocab_size: int

        def __call__(self, **inputs: Any) -> States:
            """Run the layers."""
            ...

    class CausalModel(PreTrainedModel):
        """A causal language model."""

        config: ModelConfig
        generation_config: GenerationConfig | None  # type: ignore[assignment]
        vocab_size: int

        @property
        def base_model(self) -> Body:
            """The network under the output layer."""
            ...

        def __call__(self, **inputs: Any) -> Prediction:
            """Run the body and the output layer."""
            ...

        def get_input_embeddings(self) -> nn.Embedding:
            """The embedding, [V, H]."""
            ...

        def get_output_embeddings(self) -> nn.Linear:
            """The output layer, [V, H]; it shares its weight with the embedding where they are tied."""
            ...

        def generate(self, **inputs: Any) -> torch.Tensor:
            """Token ids, [B, L]."""
            ...

        def to(self, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override] # transformers annotates it wrongly
            """As :meth:`torch.nn.Module.to`."""
            ...

        def train(self, mode: bool = True) -> Self:
            """As :meth:`torch.nn.Module.train`."""
            ...

        def eval(self) -> Self:
            """As :meth:`torch.nn.Module.eval`."""
            ...
