"""What a model's JSON files may not say: code to load, files outside the folder, two values for one key. Loads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from stillroom.core.errors import InspectionRefused
from stillroom.core.strict_json import parse_json

LARGEST_CONFIG = 64 << 20
LARGEST_OTHER = 1 << 20
"""A larger file (a tokenizer's vocabulary) is not parsed here; transformers does it, and it names no code."""
_ALWAYS = (
    "config.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.json",
    "processor_config.json",
)
_CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate")
_ATTENTION = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def look_at_json(path: Path, name: str) -> Iterator[tuple[str, str]]:
    """Check a JSON file; yields the chat templates in it, with their places.

    Raises:
        InspectionRefused: Says what and where.
    """
    size = path.stat().st_size
    if path.name == "adapter_config.json":
        raise InspectionRefused(
            f"{path}: an adapter, which makes its reader load another model by name.", "Merge it into its model first."
        )
    if size > LARGEST_OTHER and path.name not in _ALWAYS and not path.name.endswith(".index.json"):
        with open(path, "rb") as stream:
            if stream.read(64).lstrip()[:1] not in (b"{", b"["):
                raise InspectionRefused(f"{path}: not JSON (byte 0).", "Get the file again.")
        return
    if size > LARGEST_CONFIG:
        raise InspectionRefused(f"{path}: larger than {LARGEST_CONFIG:,} bytes.", "No model's config is.")
    data = path.read_bytes()
    value = parse_json(data, str(path), infinities=True)
    _no_code(path, data, value)
    if path.name.endswith(".index.json"):
        _stays_inside(path, value)
    if isinstance(value, dict):
        yield from _templates(path, name, value)


def _no_code(path: Path, data: bytes, value: Any) -> None:
    """No key anywhere that makes a reader load code, or a file or model from elsewhere."""
    queue = [value]
    while queue:
        item = queue.pop()
        if isinstance(item, list):
            queue.extend(item)
        if not isinstance(item, dict):
            continue
        queue.extend(item.values())
        for key in _CODE_KEYS:
            if item.get(key) and not (key == "auto_map" and item is value and _known(path, value)):
                at = max(0, data.find(b'"' + key.encode() + b'"'))
                raise InspectionRefused(
                    f"{path}: `{key}` asks for the model's own code (byte {at:,}).",
                    "Use a version of the model that transformers knows by itself.",
                )
        for key in _ATTENTION:
            if isinstance(item.get(key), str) and ("/" in item[key] or ":" in item[key]):
                raise InspectionRefused(
                    f"{path}: `{key}` names code on a hub: {item[key][:80]!r}.", "Take the key out of the config."
                )
        weights = item.get("transformers_weights")
        if weights is not None and not (
            isinstance(weights, str) and _plain(weights) and weights.endswith(".safetensors")
        ):
            raise InspectionRefused(
                f"{path}: `transformers_weights` names {str(weights)[:80]!r}, which is not a safetensors file of the folder.",
                "Take the key out of the config.",
            )


def _known(path: Path, config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is of a family that transformers has itself: then its `auto_map` is left unread."""
    name = config.get("model_type")
    if path.name != "config.json" or not isinstance(name, str):
        return False
    from transformers import CONFIG_MAPPING

    return name in CONFIG_MAPPING


def _stays_inside(path: Path, value: Any) -> None:
    """An index of shards names plain safetensors files that are beside it."""
    shards = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(shards, dict):
        raise InspectionRefused(f"{path}: an index without `weight_map`.", "Get the whole model again.")
    for shard in sorted({str(shard) for shard in shards.values()}):
        if not _plain(shard):
            raise InspectionRefused(
                f"{path}: the shard {shard[:80]!r} leads out of the folder.", "Get the model from its owner again."
            )
        if not shard.endswith(".safetensors"):
            raise InspectionRefused(f"{path}: the shard {shard[:80]!r} is not safetensors.", "Convert it first.")
        if not (path.parent / shard).is_file():
            raise InspectionRefused(f"{path}: the shard {shard[:80]!r} is missing.", "Get the whole model again.")


def _plain(name: str) -> bool:
    """Whether a name is a file's own, without folders."""
    return (
        name not in ("", ".", "..")
        and PurePosixPath(name).name == name
        and PureWindowsPath(name).name == name
        and "\0" not in name
    )


def _templates(path: Path, name: str, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    found = value.get("chat_template")
    if isinstance(found, str):
        yield f"{name}#chat_template", found
    elif isinstance(found, dict | list):
        entries = (
            found.items()
            if isinstance(found, dict)
            else [(entry.get("name"), entry.get("template")) for entry in found if isinstance(entry, dict)]
        )
        for title, template in entries:
            if not isinstance(template, str):
                raise InspectionRefused(f"{path}: a chat template that is no text.", "Do not use it.")
            suffix = "chat_template" if title == "default" else f"chat_template.{title}"
            yield f"{name}#{suffix}", template
    elif found is not None:
        raise InspectionRefused(f"{path}: a chat template that is no text.", "Do not use it.")
