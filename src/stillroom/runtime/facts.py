"""What the parent of an engine has to know of a GGUF file: whether it embeds, its longest context, its markup."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from stillroom.core.byte_tokens import bytes_of
from stillroom.core.errors import UsageError
from stillroom.inspection.gguf_header import GgufHeader, read_gguf, read_numbers, read_texts

_CONTROL = (2, 3)
"""Types of tokens that llama.cpp finds in a text only where it is told to look for markup: unknown and control (llama.h)."""
_DEFINED = 4
"""The type of added tokens, which llama.cpp finds in every text."""


@dataclass(frozen=True)
class GgufFacts:
    """What a file says of itself.

    Attributes:
        embedding: It is a model of embeddings: it says how states are pooled.
        context: Tokens of the longest context it was made for; None where it does not say.
        control: Texts of its control tokens.
        markup: Texts of added tokens that its chat template names.
        template: Its chat template; empty where it has none, or none that was kept.
        architecture: What llama.cpp calls its architecture.
    """

    embedding: bool
    context: int | None
    control: tuple[str, ...] = ()
    markup: tuple[str, ...] = ()
    template: str = ""
    architecture: str = field(default="", compare=False)


def read_facts(path: Path) -> GgufFacts:
    """Read a file's header and vocabulary.

    Raises:
        InspectionRefused: It is not a whole GGUF file.
    """
    header = read_gguf(path)
    architecture = header.metadata.get("general.architecture")
    pooling, context = (header.metadata.get(f"{architecture}.{key}") for key in ("pooling_type", "context_length"))
    embedding = isinstance(pooling, int) and pooling > 0
    longest = context if isinstance(context, int) and context > 0 else None
    found = header.metadata.get("tokenizer.chat_template")
    template = found if isinstance(found, str) else ""
    with open(path, "rb") as stream:
        tokens = list(_added_tokens(header, stream))
    control = tuple(text for text, kind in tokens if kind in _CONTROL)
    markup = tuple(text for text, kind in tokens if kind == _DEFINED and text in template)
    return GgufFacts(embedding, longest, control, markup, template, str(architecture or ""))


def _added_tokens(header: GgufHeader, stream: BinaryIO) -> Iterator[tuple[str, int]]:
    """Texts and types of the tokens that are no ordinary text; blank ones can mark nothing."""
    tokens, types = header.metadata.get("tokenizer.ggml.tokens"), header.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, dict) or tokens["type"] != 8:
        return
    kinds = read_numbers(stream, types) if isinstance(types, dict) and types["type"] in (4, 5) else []
    for text, kind in zip(read_texts(stream, tokens), kinds, strict=False):
        if kind in (*_CONTROL, _DEFINED) and text.strip():
            yield text, int(kind)


def vocabulary_pieces(path: Path) -> list[tuple[int, bytes]]:
    """Ids and bytes of a GGUF file's ordinary tokens, in the order of ids; a SentencePiece space is a space.

    Raises:
        InspectionRefused: It is not a whole GGUF file.
    """
    header = read_gguf(path)
    tokens, types = header.metadata.get("tokenizer.ggml.tokens"), header.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, dict) or tokens["type"] != 8:
        return []
    byte_level = header.metadata.get("tokenizer.ggml.model") == "gpt2"
    found: list[tuple[int, bytes]] = []
    with open(path, "rb") as stream:
        kinds = read_numbers(stream, types) if isinstance(types, dict) and types["type"] in (4, 5) else []
        for index, text in enumerate(read_texts(stream, tokens)):
            if index < len(kinds) and kinds[index] != 1:
                continue
            piece = bytes_of(text) if byte_level else text.replace("\u2581", " ").encode()
            if piece is not None:
                found.append((index, piece))
    return found


def require_drafter(target: Path, drafter: Path) -> None:
    """Refuse a drafter whose vocabulary is not its target's, or whose texts begin or end with other tokens; llama.cpp would
    leave it out, and say so in its log alone.

    Raises:
        UsageError: Tokens differ; names the first.
        InspectionRefused: One of them is not a whole GGUF file.
    """
    (kind, tokens, around), (mine, my_tokens, my_around) = _vocabulary(target), _vocabulary(drafter)
    different = next((n for n, (a, b) in enumerate(zip(tokens, my_tokens, strict=False)) if a != b), None)
    added = next((key for key in around if key in my_around and around[key] != my_around[key]), None)
    if kind != mine:
        why = f"its tokenizer is of the kind {mine}, the model's of the kind {kind}"
    elif different is not None:
        why = f"its token {different} is {my_tokens[different]!r}, the model's is {tokens[different]!r}"
    elif len(tokens) != len(my_tokens):
        why = f"it has {len(my_tokens):,} tokens, and the model has {len(tokens):,}"
    elif added is not None:
        why = f"{added} {_in_words(my_around[added])}, and the model's {_in_words(around[added])}"
    else:
        return
    raise UsageError(
        f"{drafter.name} cannot draft for {target.name}: {why}.",
        "A drafter needs its target's vocabulary: make one with `student: {drafter: true}`.",
    )


def _in_words(token: object) -> str:
    return "none" if token is False else f"the token {token}"


def _vocabulary(path: Path) -> tuple[str, list[str], dict[str, object]]:
    """The kind of a file's tokenizer, its tokens, and what it puts around a text, where it says so: an id, or False."""
    header = read_gguf(path)
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    found: list[str] = []
    if isinstance(tokens, dict) and tokens["type"] == 8:
        with open(path, "rb") as stream:
            found = list(read_texts(stream, tokens))
    around: dict[str, object] = {}
    for key, words in (("bos", "it puts before a text"), ("eos", "it puts behind a text")):
        adds = header.metadata.get(f"tokenizer.ggml.add_{key}_token")
        token = header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if adds is False or (adds is True and token is not None):
            around[words] = adds and token
    return str(header.metadata.get("tokenizer.ggml.model")), found, around
