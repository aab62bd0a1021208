"""A tokenizer as GGUF's keys.

llama.cpp knows pre-tokenizers by name only; a tokenizer whose rules have no such name is refused rather than exported
with ids that would differ.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from stillroom.core.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def add_tokenizer(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int, pre_tokenizer: str | None = None
) -> None:
    """Write the tokenizer; rows of the output behind its ids become unused tokens.

    Args:
        writer: Of the file.
        tokenizer: The tokenizer.
        rows: Rows of the output.
        pre_tokenizer: llama.cpp's name of a byte-level pre-tokenizer; None finds the one that is proved to be it.

    Raises:
        UnsupportedModel: llama.cpp has no name for these rules.
    """
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = rules["model"]
    if model["type"] != "BPE":
        raise UnsupportedModel(
            f"A tokenizer of the kind {model['type']} cannot be exported to GGUF.",
            "Export nothing: `export: {gguf: []}`.",
        )
    tokens, types = _tokens(tokenizer, rules, rows)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        # llama.cpp joins the pair with the highest score; merges that come first score highest.
        ranks = {"".join(_pair(merge)): rank for rank, merge in reversed(list(enumerate(model["merges"])))}
        writer.add_token_scores([-float(ranks.get(token, len(ranks))) for token in tokens])
        writer.add_add_space_prefix(_prepends(rules))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer or _name(tokenizer, rules))
        writer.add_token_merges([" ".join(_pair(merge)) for merge in model["merges"]])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for key, index in (
        ("bos", tokenizer.bos_token_id),
        ("eos", tokenizer.eos_token_id),
        ("unk", tokenizer.unk_token_id),
        ("pad", tokenizer.pad_token_id),
    ):
        if index is not None:
            getattr(writer, f"add_{key}_token_id")(index)
    writer.add_add_bos_token(_adds_bos(tokenizer))
    writer.add_add_eos_token(value=False)
    if tokenizer.chat_template:
        writer.add_chat_template(str(tokenizer.chat_template))


def _tokens(tokenizer: PreTrainedTokenizerFast, rules: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    added = {int(entry["id"]): entry for entry in rules["added_tokens"]}
    texts = {index: text for text, index in tokenizer.get_vocab().items()}
    tokens: list[str] = []
    types: list[TokenType] = []
    for index in range(rows):
        text = texts.get(index)
        if text is None:
            tokens.append(f"[PAD{index}]")
            types.append(TokenType.UNUSED)
            continue
        tokens.append(text)
        if index in added:
            types.append(TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED)
        elif rules["model"].get("byte_fallback") and len(text) == 6 and text.startswith("<0x"):
            types.append(TokenType.BYTE)
        else:
            types.append(TokenType.NORMAL)
    return tokens, types


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
    return left, right


def _prepends(rules: dict[str, Any]) -> bool:
    """Whether a space is put before the text."""
    text = json.dumps([rules.get("normalizer"), rules.get("pre_tokenizer")])
    return '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text


def _adds_bos(tokenizer: PreTrainedTokenizerFast) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _name(tokenizer: PreTrainedTokenizerFast, rules: dict[str, Any]) -> str:
    """llama.cpp's name of a byte-level pre-tokenizer: of a known pattern, or else proved by trying."""
    steps = rules.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps]) if steps else []
    kinds = [step["type"] for step in steps]
    byte_level = next((step for step in steps if step["type"] == "ByteLevel"), None)
    if (
        byte_level is None
        or byte_level.get("add_prefix_space")
        or rules.get("normalizer") not in (None, {"type": "NFC"})
    ):
        raise _unknown(kinds)
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and byte_level.get("use_regex", True):
        return "smollm"
    if kinds == ["ByteLevel"] and byte_level.get("use_regex", True):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and not byte_level.get("use_regex", True):
        pattern = steps[0]["pattern"].get("Regex", "")
        known = {
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
        }
        for ending, name in known.items():
            if pattern.endswith("[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" + ending):
                return name
    found = _proved(tokenizer)
    if found is None:
        raise _unknown(kinds)
    return found


_FOUND: dict[str, str | None] = {}
"""What was found for tokenizers of this process, by the digest of their rules."""


def _proved(tokenizer: PreTrainedTokenizerFast) -> str | None:
    from stillroom.core import files
    from stillroom.formats.pretokenizers import proved_name

    digest = files.digest_json(tokenizer.backend_tokenizer.to_str())
    if digest not in _FOUND:
        _FOUND[digest] = proved_name(tokenizer, add_tokenizer)
    return _FOUND[digest]


def _unknown(kinds: list[str]) -> UnsupportedModel:
    return UnsupportedModel(
        f"llama.cpp has no name for this tokenizer's pre-tokenizer ({' then '.join(kinds) or 'none'}): under none that it "
        "knows are its ids those of the tokenizer.",
        "Export nothing: `export: {gguf: []}`; the Hugging Face folder of the student is complete.",
    )
