"""What a model's files say of it, whatever types they say it with; and `stillroom inspect` over such files."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType, GGUFWriter
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.inspection.facts import facts_in_words, model_facts
from stillroom.inspection.inspect import report

EVIL = "\x1b[2J\nsafe: True"
VALUES: tuple[Any, ...] = (None, [], {}, EVIL, 10**400, True, -1, 1.5, [None], {"a": None}, "x" * 5000)
BESIDE = {
    "chat_template.json": {"chat_template": {"default": "x", EVIL: "y"}},
    "model.safetensors.index.json": {"weight_map": {"a": "model.safetensors"}, "metadata": {}},
}
"""Files that the tiny model lacks, so that all kinds of small JSON files occur."""


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something is in a document: all of it, and every key and entry."""
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def replaced(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return value
    changed = copy.deepcopy(document)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return changed


def look(path: Path) -> None:
    """Facts and report are plain values, and no text of the files is sent to a terminal as it is."""
    facts = model_facts(path)
    words = "" if facts is None else facts_in_words(facts)
    assert "\x1b" not in words
    assert "\n" not in words
    found = report(path)
    assert json.dumps([facts, found])
    told = [entry["where"] for entry in found["templates"]]
    told += [entry[key] for entry in found["refused"] for key in ("file", "reason")]
    assert not any("\x1b" in text or "\n" in text for text in told)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "chat_template.json",
             "model.safetensors.index.json"]
)  # fmt: skip
def test_any_value_anywhere_in_a_small_file_is_looked_at(name: str, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model", layers=1)
    document = BESIDE.get(name) or json.loads((folder / name).read_text())
    if name == "config.json":
        document |= {"text_config": {"max_position_embeddings": 8}, "auto_map": {}, "attn_implementation": "eager"}
    if name == "tokenizer_config.json":
        document |= {"chat_template": [{"name": "default", "template": "x"}, {"name": EVIL, "template": "y"}]}
    (folder / name).write_text(json.dumps(document))
    look(folder)
    for at in places(document):
        for value in VALUES:
            (folder / name).write_text(json.dumps(replaced(document, at, value)))
            look(folder)


@pytest.mark.parametrize(
    "content", ["[]", "null", "3", '"text"', '{"max_position_embeddings": "many", "model_type": []}']
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_inspect_ends_in_words(name: str, content: str, tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model", layers=1)
    (folder / name).write_text(content)
    for words in ([], ["--json"]):
        done = CliRunner().invoke(app, ["inspect", str(folder), *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.output


TYPED = {
    "text": (EVIL, GGUFValueType.STRING),
    "long text": ("x" * (2 << 20), GGUFValueType.STRING),
    "truth": (True, GGUFValueType.BOOL),
    "float": (float("nan"), GGUFValueType.FLOAT32),
    "negative": (-1, GGUFValueType.INT64),
    "huge": (2**64 - 1, GGUFValueType.UINT64),
    "array": ([1, 2], GGUFValueType.ARRAY),
}


@pytest.mark.parametrize("value", TYPED)
@pytest.mark.parametrize("key", ["llama.context_length", "general.architecture", "tokenizer.chat_template", f"a{EVIL}"])
def test_any_type_of_a_gguf_value_is_looked_at(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "llama")
    writer.kv_data[0].pop(key, None)
    writer.add_key_value(key, *TYPED[value])
    writer.add_tensor("t", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    look(path)
    facts = model_facts(path)
    assert facts is not None
    assert facts["context"] == (2**64 - 1 if (key, value) == ("llama.context_length", "huge") else None)
    done = CliRunner().invoke(app, ["inspect", str(path)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "\x1b" not in done.output
