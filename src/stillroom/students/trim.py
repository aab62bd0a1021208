"""Prunes a tokenizer to fewer ids, so that what it still knows is tokenized as before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import UnsupportedModel
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students.keep import choose, read_rules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Trimmed:
    """A smaller tokenizer, the teacher ids that it kept in the order of its own ids, and the map between them."""

    tokenizer: PreTrainedTokenizerFast
    kept: list[int]
    vocabulary: VocabularyMap


def trim(
    tokenizer: PreTrainedTokenizerFast,
    counts: Mapping[int, int],
    size: int | None,
    teacher_rows: int,
    multiple_of: int,
) -> Trimmed:
    """Prune a tokenizer.

    Bytes, special and added tokens always stay. Rows are filled with real ids up to a multiple of ``multiple_of``; only
    where the teacher has no more ids are there padding rows, which ``VocabularyMap.student_used`` keeps out of every
    loss.

    Args:
        tokenizer: The teacher's.
        counts: How often each id is in the training text.
        size: At most this many ids, the most frequent first; None keeps all that occur.
        teacher_rows: Rows of the teacher's output layer.
        multiple_of: The student's rows are a multiple of this.

    Raises:
        UnsupportedModel: The tokenizer's kind cannot be pruned.
        RecipeError: ``size`` is too small.
    """
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = choose(read_rules(rules, tokenizer.all_special_ids), counts, size, multiple_of)
    new_ids = {old: new for new, old in enumerate(kept)}
    smaller = _rebuild(tokenizer, rules, kept, new_ids)
    rows = -(-len(kept) // multiple_of) * multiple_of
    return Trimmed(smaller, kept, _map(tokenizer, smaller, new_ids, teacher_rows, rows))


def whole(tokenizer: PreTrainedTokenizerFast, teacher_rows: int) -> VocabularyMap:
    """The map of a student that keeps everything; rows behind the tokenizer's ids are padding."""
    used = min(teacher_rows, max(tokenizer.get_vocab().values()) + 1)
    pieces = [[index] if index < used else [] for index in range(teacher_rows)]
    return VocabularyMap.from_pieces(pieces, teacher_rows, used)


def _rebuild(
    tokenizer: PreTrainedTokenizerFast, rules: dict[str, Any], kept: list[int], new_ids: dict[int, int]
) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    model = rules["model"]
    if model["type"] == "BPE":
        vocabulary = {text: new_ids[index] for text, index in model["vocab"].items() if index in new_ids}
        merges = []
        for merge in model["merges"]:
            left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
            if left in vocabulary and right in vocabulary and left + right in vocabulary:
                merges.append([left, right])
        model["vocab"], model["merges"] = vocabulary, merges
    else:
        pieces = model["vocab"]
        model["vocab"] = [pieces[index] for index in kept if index < len(pieces)]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[int(model["unk_id"])]
    for entry in rules["added_tokens"]:
        entry["id"] = new_ids[int(entry["id"])]
    rules["added_tokens"].sort(key=lambda entry: entry["id"])
    _renumber(rules.get("post_processor"), new_ids)
    rules["truncation"] = rules["padding"] = None
    # A family's class could rebuild its rules when it is loaded again; the plain one keeps them as they are.
    smaller = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)),
        **dict(tokenizer.special_tokens_map),
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        clean_up_tokenization_spaces=False,
    )
    moved = [
        entry["content"]
        for entry in rules["added_tokens"]
        if smaller.convert_tokens_to_ids(entry["content"]) != entry["id"]
    ]
    if moved or len(smaller) != len(kept):
        name = moved[0] if moved else "the last token"
        raise UnsupportedModel(
            f"The tokenizer cannot be trimmed: {name!r} would get another id than it is meant to.",
            "Write `student.vocabulary: {keep: all}`.",
        )
    return smaller


def _renumber(value: Any, new_ids: dict[int, int]) -> None:
    """Ids inside a post-processor: templates list them as ``ids``, others as pairs of token and id."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "ids" and isinstance(inner, list):
                value[key] = [new_ids[int(index)] for index in inner]
            elif key in ("sep", "cls") and isinstance(inner, list) and len(inner) == 2:
                value[key] = [inner[0], new_ids[int(inner[1])]]
            else:
                _renumber(inner, new_ids)
    elif isinstance(value, list):
        for inner in value:
            _renumber(inner, new_ids)


def _map(
    tokenizer: PreTrainedTokenizerFast,
    smaller: PreTrainedTokenizerFast,
    new_ids: dict[int, int],
    teacher_rows: int,
    rows: int,
) -> VocabularyMap:
    """The sub-tokens of every teacher id: the id itself, or what the smaller model makes of its text inside a word."""
    old_model = tokenizer.backend_tokenizer
    new_model = smaller.backend_tokenizer.model
    pieces: list[list[int]] = []
    for index in range(teacher_rows):
        if index in new_ids:
            pieces.append([new_ids[index]])
            continue
        text = old_model.id_to_token(index)
        if text is None:
            pieces.append([])
            continue
        # The model works below normalization and pre-tokenization, on the very alphabet that the token is written in.
        pieces.append([token.id for token in new_model.tokenize(text)])
    return VocabularyMap.from_pieces(pieces, rows, len(new_ids))
