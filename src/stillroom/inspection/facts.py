"""What a model's files say of the model: parameters, types of numbers, context, chat template. No weights are read."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from stillroom.core.errors import InspectionRefused
from stillroom.inspection.gguf_header import read_gguf
from stillroom.inspection.safetensors_header import read_safetensors


def model_facts(path: Path) -> dict[str, Any] | None:
    """What a GGUF file, a safetensors file or a model's folder holds; None where it is none of them, or not a whole one.

    Returns:
        ``kind``, ``architecture``, ``parameters`` (stored numbers; a tied matrix is stored once), ``types`` (parameters by
        type), ``context`` (tokens, None where the files do not say) and ``chat_template`` (whether there is one).
    """
    with contextlib.suppress(InspectionRefused, OSError, ValueError, RecursionError):
        if path.is_dir():
            return _folder(path)
        if path.suffix.lower() == ".gguf":
            return _gguf(path)
        if path.suffix.lower() == ".safetensors":
            return _facts("safetensors file", None, _safetensors(path), None, None)
    return None


def _facts(
    kind: str, architecture: str | None, types: Counter[str], context: int | None, template: bool | None
) -> dict[str, Any]:
    return {
        "kind": kind,
        "architecture": architecture,
        "parameters": sum(types.values()),
        "types": dict(types.most_common()),
        "context": context,
        "chat_template": template,
    }


def _gguf(path: Path) -> dict[str, Any]:
    from gguf import GGMLQuantizationType

    header = read_gguf(path)
    types: Counter[str] = Counter()
    for shape, number, _ in header.tensors.values():
        types[GGMLQuantizationType(number).name] += math.prod(shape)
    architecture = header.metadata.get("general.architecture")
    return _facts(
        "GGUF file",
        architecture,
        types,
        header.metadata.get(f"{architecture}.context_length"),
        "tokenizer.chat_template" in header.metadata,
    )


def _safetensors(path: Path) -> Counter[str]:
    types: Counter[str] = Counter()
    for dtype, shape in read_safetensors(path).tensors.values():
        types[dtype] += math.prod(shape)
    return types


def _folder(folder: Path) -> dict[str, Any] | None:
    files = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not files:
        return None
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    types: Counter[str] = Counter()
    for file in files:
        types += _safetensors(file)
    tokenizer: Any = {}
    with contextlib.suppress(OSError, ValueError):
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = (folder / "chat_template.jinja").is_file() or bool(tokenizer.get("chat_template"))
    context = inner.get("max_position_embeddings")
    return _facts("Hugging Face folder", config.get("model_type"), types, context, template)


def facts_in_words(facts: dict[str, Any]) -> str:
    """One line that says what a model is."""
    types = ", ".join(facts["types"])
    words = [facts["kind"]]
    if facts["architecture"]:
        words.append(str(facts["architecture"]))
    words.append(f"{facts['parameters']:,} parameters ({types})")
    if facts["context"]:
        words.append(f"context of {facts['context']:,} tokens")
    if facts["chat_template"] is not None:
        words.append("with a chat template" if facts["chat_template"] else "no chat template")
    return ", ".join(words)
