"""Cuts a tokenizer down to the ids that are wanted, so that what it still knows is tokenized as before. Knows no weights.

Byte-pair encodings keep, besides a wanted token, every token that its merges pass through, so that it can still be
reached. Unigram models need no such closure. Bytes, special and added tokens always stay.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.errors import UnsupportedModel
from stillroom.student.vocabulary import VocabularyMap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Trimmed:
    """A smaller tokenizer, the teacher ids that it kept in the order of its own ids, and the map between them."""

    tokenizer: PreTrainedTokenizerFast
    kept: list[int]
    vocabulary: VocabularyMap


def trim(
    tokenizer: PreTrainedTokenizerFast, counts: dict[int, int], size: int | None, teacher_rows: int, multiple_of: int
) -> Trimmed:
    """Cut a tokenizer.

    Args:
        tokenizer: The teacher's.
        counts: How often each id stands in the training text.
        size: At most this many ids, the most frequent first; None keeps all that occur.
        teacher_rows: Rows of the teacher's output layer.
        multiple_of: The student's rows are a multiple of this.

    Raises:
        UnsupportedModel: The tokenizer's kind cannot be cut.
    """
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = rules["model"]
    if model["type"] == "BPE":
        kept = _keep_bpe(model, rules, tokenizer, counts, size)
    elif model["type"] == "Unigram":
        kept = _keep_unigram(model, rules, tokenizer, counts, size)
    else:
        raise UnsupportedModel(
            f"A tokenizer of the kind {model['type']} cannot be trimmed.", "Write `student.vocabulary.keep: all`."
        )
    new_ids = {old: new for new, old in enumerate(kept)}
    smaller = _rebuild(tokenizer, rules, kept, new_ids)
    rows = -(-len(kept) // multiple_of) * multiple_of
    return Trimmed(smaller, kept, _map(tokenizer, smaller, new_ids, teacher_rows, rows, len(kept)))


def whole(tokenizer: PreTrainedTokenizerFast, teacher_rows: int) -> VocabularyMap:
    """The map of a student that keeps everything; rows behind the tokenizer's ids are padding."""
    used = min(teacher_rows, max(tokenizer.get_vocab().values()) + 1)
    pieces = [[index] if index < used else [] for index in range(teacher_rows)]
    return VocabularyMap.from_pieces(pieces, teacher_rows, used)


def _always(rules: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Special and added tokens."""
    added = {int(entry["id"]) for entry in rules["added_tokens"]}
    return added | set(tokenizer.all_special_ids)


def _keep_bpe(
    model: dict[str, Any],
    rules: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    counts: dict[int, int],
    size: int | None,
) -> list[int]:
    vocabulary: dict[str, int] = model["vocab"]
    texts = {index: text for text, index in vocabulary.items()}
    parents: dict[str, tuple[str, str]] = {}
    for merge in model["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        parents.setdefault(left + right, (left, right))
    always = _always(rules, tokenizer)
    # What no merge makes is an alphabet: characters, bytes.
    alphabet = {index for text, index in vocabulary.items() if text not in parents}
    kept = always | alphabet
    if size is not None and size < len(kept):
        raise UnsupportedModel(
            f"`student.vocabulary.size` is {size}, and bytes, characters and special tokens alone are {len(kept)}.",
            f"Ask for at least {len(kept)}.",
        )
    for index in sorted(counts, key=lambda index: (-counts[index], index)):
        needed = _closure(index, texts, vocabulary, parents, kept)
        if size is not None and len(kept) + len(needed) > size:
            continue
        kept |= needed
    return sorted(kept)


def _closure(
    index: int, texts: dict[int, str], vocabulary: dict[str, int], parents: dict[str, tuple[str, str]], kept: set[int]
) -> set[int]:
    """A token and all that its merges pass through and that is not kept yet."""
    needed: set[int] = set()
    queue = [index]
    while queue:
        at = queue.pop()
        if at in kept or at in needed:
            continue
        needed.add(at)
        queue += [vocabulary[part] for part in parents.get(texts.get(at, ""), ())]
    return needed


def _keep_unigram(
    model: dict[str, Any],
    rules: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    counts: dict[int, int],
    size: int | None,
) -> list[int]:
    pieces: list[list[Any]] = model["vocab"]
    kept = _always(rules, tokenizer)
    if model.get("unk_id") is not None:
        kept.add(int(model["unk_id"]))
    kept |= {
        index
        for index, (piece, _) in enumerate(pieces)
        if len(piece) == 1 or (len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"))
    }
    for index in sorted(counts, key=lambda index: (-counts[index], index)):
        if size is None or len(kept) < size:
            kept.add(index)
    return sorted(kept)


def _rebuild(
    tokenizer: PreTrainedTokenizerFast, rules: dict[str, Any], kept: list[int], new_ids: dict[int, int]
) -> PreTrainedTokenizerFast:
    import copy

    from tokenizers import Tokenizer

    model = rules["model"]
    if model["type"] == "BPE":
        old = model["vocab"]
        model["vocab"] = {text: new_ids[index] for text, index in old.items() if index in new_ids}
        merges = []
        for merge in model["merges"]:
            left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
            if left in model["vocab"] and right in model["vocab"] and left + right in model["vocab"]:
                merges.append([left, right])
        model["merges"] = merges
    else:
        pieces = model["vocab"]
        model["vocab"] = [pieces[index] for index in kept if index < len(pieces)]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[int(model["unk_id"])]
    for entry in rules["added_tokens"]:
        entry["id"] = new_ids[int(entry["id"])]
    _renumber(rules.get("post_processor"), new_ids)
    smaller = copy.deepcopy(tokenizer)
    smaller._tokenizer = Tokenizer.from_str(json.dumps(rules))
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
    used: int,
) -> VocabularyMap:
    """The pieces of every teacher id: the id itself, or what the smaller model makes of its text inside a word."""
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
    return VocabularyMap.from_pieces(pieces, rows, used)
