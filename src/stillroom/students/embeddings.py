"""Prunes embedding and output matrix to the ids that a student keeps.

Legend: S student rows, H hidden width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.core.errors import UnsupportedModel

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

NAMED = 8
"""Of what a field lost, so many are named, and the others counted."""

Shape = Callable[[Any, dict[int, int]], tuple[Any, list[Any]]]
"""From a field's value, and the student's id of each of the teacher's, to the new value (None: nothing is left) and what is
dropped of the old one."""


def _ids(value: Any, new_ids: dict[int, int]) -> tuple[Any, list[Any]]:
    """One id, or a list of them. A negative one stands for none."""
    if not isinstance(value, (list, tuple)):
        return new_ids.get(value), [value] if value >= 0 and value not in new_ids else []
    return [new_ids[item] for item in value if item in new_ids] or None, [item for item in value if item not in new_ids]


def _words(value: Any, new_ids: dict[int, int]) -> tuple[Any, list[Any]]:
    """A list of words, each a sequence of ids or a list of such sequences of which any one will do.

    A sequence of which an id is gone cannot be written any more.
    """
    kept: list[Any] = []
    dropped: list[Any] = []
    for word in value:
        if word and isinstance(word[0], (list, tuple)):
            inner, gone = _words(word, new_ids)
        else:
            whole = all(item in new_ids for item in word)
            inner, gone = ([new_ids[item] for item in word], []) if whole else (None, [list(word)])
        kept += [] if inner is None else [inner]
        dropped += gone
    return kept or None, dropped


def _biases(value: Any, new_ids: dict[int, int]) -> tuple[Any, list[Any]]:
    """Sequences of ids, each with a number: pairs, or a dict with tuples as keys. The result is pairs, as JSON has them."""
    pairs = list(value.items() if isinstance(value, dict) else value)
    whole = [all(item in new_ids for item in word) for word, _ in pairs]
    kept = [
        [[new_ids[item] for item in word], number] for (word, number), there in zip(pairs, whole, strict=True) if there
    ]
    return kept or None, [list(word) for (word, _), there in zip(pairs, whole, strict=True) if not there]


def _by_step(value: Any, new_ids: dict[int, int]) -> tuple[Any, list[Any]]:
    """Pairs of a step and the id at it, None where the step is free."""
    kept = [[step, new_ids.get(item)] for step, item in value if item is None or item in new_ids]
    return kept or None, [item for _, item in value if item is not None and item not in new_ids]


def _objects(value: Any, new_ids: dict[int, int]) -> tuple[Any, list[Any]]:  # noqa: ARG001
    """Objects of a program, which hold ids where no one can renumber them: all are dropped."""
    return None, [type(item).__name__ for item in value]


TOKEN_FIELDS: dict[str, Shape] = {
    "bos_token_id": _ids,
    "eos_token_id": _ids,
    "pad_token_id": _ids,
    "decoder_start_token_id": _ids,
    "forced_bos_token_id": _ids,
    "forced_eos_token_id": _ids,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "bad_words_ids": _words,
    "force_words_ids": _words,
    "sequence_bias": _biases,
    "forced_decoder_ids": _by_step,
    "constraints": _objects,
}
"""What a model's config and generation config name tokens by, and in which shape."""
ID_ENDINGS = ("_token_id", "_token_ids", "_token_index")
"""Ends of further fields, such as a family's ``image_token_id``, that hold one id or a list."""


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


def renumber_config(model: CausalModel, kept: list[int]) -> dict[str, list[Any]]:
    """Translate every id in a model's configs; one that was not kept is dropped.

    Args:
        model: Its ``config`` and ``generation_config`` are changed in place.
        kept: The teacher's ids in the order of the student's.

    Returns:
        What was dropped of each field that lost anything: ids, or sequences of ids of which at least one is gone.

    Raises:
        UnsupportedModel: The family's config needs an id whose token is gone, or a field does not have its shape.
    """
    from huggingface_hub.errors import StrictDataclassError

    new_ids = {old: new for new, old in enumerate(kept)}
    lost: dict[str, list[Any]] = {}
    for config in filter(None, (model.config, model.generation_config)):
        for key, value in list(vars(config).items()):
            shape = TOKEN_FIELDS.get(key) or (_ids if key.endswith(ID_ENDINGS) else None)
            if shape is None or value is None:
                continue
            try:
                found, dropped = shape(value, new_ids)
            except (TypeError, ValueError):
                raise UnsupportedModel(
                    f"The model's config has `{key}`: {str(value)[:60]}, which does not name tokens as transformers does.",
                    "Correct the model's config.json or generation_config.json.",
                ) from None
            try:
                setattr(config, key, found)
            except (StrictDataclassError, TypeError, ValueError):
                raise UnsupportedModel(
                    f"The config of the family `{model.config.model_type}` needs `{key}`, and the token of id {value} is not "
                    "in the student's vocabulary.",
                    "Write `student.vocabulary: {keep: all}`.",
                ) from None
            lost[key] = [*lost.get(key, []), *(item for item in dropped if item not in lost.get(key, []))]
    return {key: dropped for key, dropped in lost.items() if dropped}


def lost_words(model: CausalModel, kept: list[int] | None) -> str:
    """What :func:`renumber_config` will drop, in words and before anything is spent; empty where that is nothing.

    Raises:
        UnsupportedModel: As there.
    """
    if kept is None:
        return ""
    # Both configs alone: a copy of the model would need its memory again.
    rehearsal: Any = SimpleNamespace(
        config=copy.deepcopy(model.config), generation_config=copy.deepcopy(model.generation_config)
    )
    return words_of_lost(renumber_config(rehearsal, kept))


def words_of_lost(lost: Mapping[str, list[Any]]) -> str:
    """What :func:`renumber_config` dropped, in words; empty where that is nothing."""
    named = [
        f"{key} {', '.join(map(str, items[:NAMED]))}{f' and {more} more' if (more := len(items) - NAMED) > 0 else ''}"
        for key, items in lost.items()
    ]
    return (
        f"dropped from the config, for their tokens are not in the student's vocabulary: {'; '.join(named)}"
        if named
        else ""
    )


def _pick(values: torch.Tensor, index: torch.Tensor, rows: int) -> torch.Tensor:
    found = torch.zeros(rows, *values.shape[1:], dtype=values.dtype, device=values.device)
    found[: len(index)] = values[index]
    return found
