"""The bytes of text that each id of a tokenizer stands for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stillroom.core.byte_tokens import bytes_of, is_byte
from stillroom.core.errors import VocabularyMismatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def token_bytes(tokenizer: PreTrainedTokenizerFast, owner: str) -> tuple[list[bytes | None], dict[str, int]]:
    """What the ids of a tokenizer stand for.

    Args:
        tokenizer: Byte-level BPE, or SentencePiece's kinds (BPE and Unigram, a space written as ▁).
        owner: Whose it is, for the error: ``student`` or ``teacher``.

    Returns:
        The bytes of each id, None for special tokens and unused ids; and the special tokens, with their ids.

    Raises:
        VocabularyMismatch: It is of another kind, and its tokens cannot be told in bytes.
    """
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = rules["model"]["type"]
    steps = _kinds(rules.get("pre_tokenizer")) | _kinds(rules.get("decoder"))
    if kind not in ("BPE", "Unigram"):
        raise VocabularyMismatch(
            f"The {owner}'s tokenizer is of the kind {kind}: it does not say which bytes its tokens stand for.",
            "Use a model with a byte-level BPE or a SentencePiece tokenizer.",
        )
    byte_level, fallback = "ByteLevel" in steps, bool(rules["model"].get("byte_fallback"))
    added = {int(entry["id"]): entry for entry in rules["added_tokens"]}
    vocabulary = tokenizer.get_vocab()
    found: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    specials: dict[str, int] = {}
    named = set(tokenizer.all_special_ids)
    for text, index in vocabulary.items():
        entry = added.get(index)
        if index in named or (entry is not None and entry["special"]):
            specials[text] = index
        elif entry is not None:
            found[index] = text.encode()
        elif byte_level:
            found[index] = bytes_of(text)
        elif fallback and is_byte(text):
            found[index] = bytes([int(text[3:5], 16)])
        else:
            found[index] = text.replace("▁", " ").encode()
    return found, specials


def _kinds(step: Any) -> set[str]:
    """The types of a step of a tokenizer, and of the steps inside it."""
    if not isinstance(step, dict):
        return set()
    inner = [*(step.get("pretokenizers") or []), *(step.get("decoders") or [])]
    return {str(step.get("type"))}.union(*map(_kinds, inner))
