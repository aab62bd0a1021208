"""Which ids a smaller vocabulary keeps, by the rules of tokenizers.

A byte-pair encoding builds a token from pairs, the pair of lowest rank first. Inside a longer text the merges within a
token's span happen in the same order as when the token is alone, for no merge ever crossed the span's ends. So a
token that is kept together with the tokens on its own path is reached wherever it was reached before, and the text of
kept tokens is tokenized as before. Unigram models choose the best path over whole sub-tokens and need no such closure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stillroom.core.byte_tokens import is_byte
from stillroom.core.errors import RecipeError, UnsupportedModel


@dataclass(frozen=True)
class Rules:
    """What a tokenizer's JSON says about its ids.

    Attributes:
        texts: Token of each id of the model, without added tokens that are outside of it.
        outside: Added tokens that are not in the model's vocabulary, ascending.
        always: Ids that stay whatever is asked: special and added tokens, bytes, and where there are no bytes to
        fall back
            on, every single character.
        ranks: Rank of each pair of a byte-pair encoding; None for Unigram.
        ids: Id of each token.
    """

    texts: dict[int, str]
    outside: list[int]
    always: set[int]
    ranks: dict[tuple[str, str], int] | None
    ids: dict[str, int]

    @property
    def total(self) -> int:
        """All ids."""
        return len(self.texts) + len(self.outside)

    def needed(self, index: int) -> set[int]:
        """An id and all that its merges pass through."""
        if self.ranks is None or index not in self.texts:
            return {index}
        path = merge_path(self.texts[index], self.ranks)
        # A token that merges never make is known as a whole word only (`ignore_merges`), or never said.
        if path[-1:] != [self.texts[index]]:
            return {index}
        return {self.ids[token] for token in path if token in self.ids} | {
            self.ids[character] for character in self.texts[index] if character in self.ids
        }


def merge_path(text: str, ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Tokens that a byte-pair encoding makes on its way through a text, in order; the last one first is alone."""
    parts = list(text)
    made: list[str] = []
    while len(parts) > 1:
        ranked = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not ranked:
            return [*made, ""]
        _, place = min(ranked)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        made.append(parts[place])
    return made or parts


def read_rules(rules: dict[str, Any], special_ids: Iterable[int]) -> Rules:
    """The rules of a tokenizer's JSON.

    Raises:
        UnsupportedModel: The tokenizer's kind cannot be pruned.
    """
    model = rules["model"]
    if model["type"] == "BPE" and not model.get("continuing_subword_prefix") and not model.get("end_of_word_suffix"):
        ids = {text: int(index) for text, index in model["vocab"].items()}
        ranks: dict[tuple[str, str], int] | None = {}
        for rank, merge in enumerate(model["merges"]):
            left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
            ranks.setdefault((left, right), rank)  # type: ignore[union-attr]
    elif model["type"] == "Unigram":
        ids = {piece: index for index, (piece, _) in enumerate(model["vocab"])}
        ranks = None
    else:
        raise UnsupportedModel(
            f"A tokenizer of the kind {model['type']} cannot be trimmed (byte-pair encodings and Unigram can).",
            "Write `student.vocabulary: {keep: all}`.",
        )
    texts = {index: text for text, index in ids.items()}
    added = {int(entry["id"]) for entry in rules["added_tokens"]}
    always = added | {int(index) for index in special_ids}
    if model.get("unk_id") is not None:
        always.add(int(model["unk_id"]))
    if model.get("unk_token") in ids:
        always.add(ids[model["unk_token"]])
    bytes_ = {index for text, index in ids.items() if is_byte(text)}
    if model.get("byte_fallback") and len(bytes_) == 256:
        # The sign for a blank has to stay itself: decoders put blanks back before they join bytes.
        always |= bytes_ | {ids[sign] for sign in ("▁",) if sign in ids}
    else:
        # The alphabet of a byte-level encoding is its 256 bytes, each written as one character.
        always |= {index for text, index in ids.items() if len(text) == 1}
    return Rules(texts, sorted(added - texts.keys()), always & (texts.keys() | added), ranks, ids)


def choose(rules: Rules, counts: Mapping[int, int], size: int | None, multiple_of: int) -> list[int]:
    """Ids to keep, in the order that the student numbers them.

    The most frequent come first, each with what its merges need. The rest up to a multiple of ``multiple_of`` is filled
    with further ids, the lowest first, which are the most common ones of what the tokenizer was trained on.

    Args:
        rules: The tokenizer's.
        counts: How often each id is wanted.
        size: At most this many ids; None keeps every wanted one.
        multiple_of: How many ids there shall be a multiple of, as far as there are enough.

    Raises:
        RecipeError: ``size`` is below what has to stay.
    """
    kept = set(rules.always)
    limit = rules.total if size is None else size // multiple_of * multiple_of
    if limit < len(kept):
        least = -(-len(kept) // multiple_of) * multiple_of
        raise RecipeError(
            f"`student.vocabulary.size` is {size}, and bytes, characters and special tokens alone are {len(kept)} ids.",
            f"Ask for at least {least}.",
        )
    known = rules.texts.keys() | set(rules.outside)
    wanted = [index for index in sorted(counts, key=lambda index: (-counts[index], index)) if index in known]
    _take(rules, kept, wanted, limit)
    if size is None:
        limit = min(rules.total, -(-len(kept) // multiple_of) * multiple_of)
    if len(kept) < limit:
        _take(rules, kept, sorted(rules.texts), limit)
    inside = sorted(index for index in kept if index in rules.texts)
    return inside + [index for index in rules.outside if index in kept]


def _take(rules: Rules, kept: set[int], wanted: Iterable[int], limit: int) -> None:
    """Add ids with what they need, as long as there are rows for them."""
    for index in wanted:
        if len(kept) >= limit:
            return
        if index not in kept:
            needed = rules.needed(index) - kept
            if len(kept) + len(needed) <= limit:
                kept |= needed
