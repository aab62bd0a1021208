"""Prunes embedding and output matrix to the ids that a student keeps.

Legend: S student rows, H hidden width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel


SPECIAL_IDS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""What a model's configs name by one id or a list of ids."""


@torch.no_grad()
def keep_rows(model: CausalModel, kept: list[int], rows: int) -> None:
    """Leave only these ids in a model; rows behind them are zero.

    Args:
        model: A causal language model, tied or untied; changed in place.
        kept: The teacher's ids in the order of the student's.
        rows: Rows of the student, at least as many as ids.
    """
    embedding = model.get_input_embeddings()
    output = model.get_output_embeddings()
    tied = output.weight is embedding.weight
    index = torch.tensor(kept, device=embedding.weight.device)
    embedding.weight = nn.Parameter(_pick(embedding.weight, index, rows))
    embedding.num_embeddings = rows
    if embedding.padding_idx is not None:
        embedding.padding_idx = kept.index(embedding.padding_idx) if embedding.padding_idx in kept else None
    if tied:
        output.weight = embedding.weight
    else:
        output.weight = nn.Parameter(_pick(output.weight, index, rows))
    if output.bias is not None:
        output.bias = nn.Parameter(_pick(output.bias, index, rows))
    output.out_features = rows
    model.config.vocab_size = rows
    model.vocab_size = rows
    if hasattr(model.base_model, "vocab_size"):
        model.base_model.vocab_size = rows


def renumber_config(model: CausalModel, kept: list[int]) -> None:
    """Translate the special ids of a model's configs; one that was not kept is dropped."""
    new_ids = {old: new for new, old in enumerate(kept)}

    def translate(value: int | list[int]) -> int | list[int] | None:
        if isinstance(value, list):
            found = [new_ids[item] for item in value if item in new_ids]
            return found or None
        return new_ids.get(value)

    for config in (model.config, model.generation_config):
        if config is None:
            continue
        for key in SPECIAL_IDS:
            value = getattr(config, key, None)
            if value is not None:
                setattr(config, key, translate(value))
        words = getattr(config, "bad_words_ids", None)
        if words is not None:
            # A sequence of which an id is gone cannot be written any more.
            said = [[new_ids[item] for item in word] for word in words if all(item in new_ids for item in word)]
            config.bad_words_ids = said or None
        biases = getattr(config, "sequence_bias", None)
        if biases is not None:
            pairs = biases.items() if isinstance(biases, dict) else biases
            config.sequence_bias = [
                [[new_ids[item] for item in word], bias]
                for word, bias in pairs
                if all(item in new_ids for item in word)
            ] or None


def _pick(values: torch.Tensor, index: torch.Tensor, rows: int) -> torch.Tensor:
    found = torch.zeros(rows, *values.shape[1:], dtype=values.dtype, device=values.device)
    found[: len(index)] = values[index]
    return found
