"""What a model's files say of the model: parameters, types of numbers, context, chat template. No weights are read."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from stillroom.core.errors import InspectionRefused
from stillroom.core.plain import shown
from stillroom.inspection.gguf_header import read_gguf
from stillroom.inspection.safetensors_header import read_safetensors


def model_facts(path: Path) -> dict[str, Any] | None:
    """What a GGUF file, a safetensors file or a model's folder holds; None where it is none of them, or not a whole one.

    Returns:
        ``kind``, ``architecture``, ``parameters`` (stored numbers; a tied matrix is stored once), ``types`` (parameters by
        type), ``context`` (tokens) and ``chat_template`` (whether there is one). Architecture and context are None where the
        files do not say, or say it with a value of another type.
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
    kind: str, architecture: object, types: Counter[str], context: object, template: bool | None
) -> dict[str, Any]:
    """The facts; what a file says of architecture and context may be of any type."""
    return {
        "kind": kind,
        "architecture": architecture if isinstance(architecture, str) else None,
        "parameters": sum(types.values()),
        "types": dict(types.most_common()),
        "context": context if isinstance(context, int) and not isinstance(context, bool) and context > 0 else None,
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
    if not isinstance(config, dict):
        return None
    of_text = config.get("text_config")
    inner = of_text if isinstance(of_text, dict) else config
    types: Counter[str] = Counter()
    for file in files:
        types += _safetensors(file)
    tokenizer: Any = {}
    with contextlib.suppress(OSError, ValueError):
        tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    said = isinstance(tokenizer, dict) and bool(tokenizer.get("chat_template"))
    template = (folder / "chat_template.jinja").is_file() or said
    context = inner.get("max_position_embeddings")
    return _facts("Hugging Face folder", config.get("model_type"), types, context, template)


def facts_in_words(facts: dict[str, Any]) -> str:
    """One line that says what a model is."""
    types = ", ".join(facts["types"])
    words = [facts["kind"]]
    if facts["architecture"]:
        words.append(shown(facts["architecture"], one_line=True))
    words.append(f"{facts['parameters']:,} parameters ({types})")
    if facts["context"]:
        words.append(f"context of {facts['context']:,} tokens")
    if facts["chat_template"] is not None:
        words.append("with a chat template" if facts["chat_template"] else "no chat template")
    return ", ".join(words)
