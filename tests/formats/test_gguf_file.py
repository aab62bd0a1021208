"""GGUF files of every family and type: planned to the byte, loaded by llama.cpp, and saying what PyTorch says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from tiny_models import FAMILIES, WINDOWED, tiny_model
from transformers import AutoConfig

from stillroom.core.errors import EngineFailed, ExportMismatch, UnsupportedModel
from stillroom.core.gguf_types import GGUF_TYPES
from stillroom.core.progress import Task
from stillroom.formats.check import (
    Agreement,
    Passage,
    agreement,
    file_says,
    require_agreement,
    require_same_tokens,
    student_says,
)
from stillroom.formats.exporter import SAMPLES
from stillroom.formats.gguf_file import planned_bytes, write_gguf
from stillroom.models.load import load_student
from stillroom.models.tokenizer import open_tokenizer
from stillroom.runtime.engine import Engine, EngineOptions

SCALING: dict[str, dict[str, Any]] = {
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "long_factor": [1.0 + index for index in range(8)],
        "short_factor": [1.0 + 0.1 * index for index in range(8)],
        "original_max_position_embeddings": 16,
    },
}


def write(folder: Path, target: Path, kind: str, **options: Any) -> Path:
    write_gguf(folder, target, kind, name="tiny", licence="Apache-2.0", **options)
    return target


def measured(folder: Path, file: Path, *positions: int, rows: int | None = None) -> Agreement:
    """Agreement over random texts of so many positions each, one after the other; no two begin with the same token."""
    model, tokenizer = load_student(folder, torch.float32)
    used = rows or model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    texts = []
    for index, length in enumerate(positions or (40,)):
        ids = [3 + index, *torch.randint(3, used, (length - 1,), generator=generator).tolist()]
        texts.append(Passage(ids, ids, list(range(length))))
    said = file_says(file, tokenizer, texts, used, Task("", 1, ""))
    return agreement(student_says(model.eval(), texts, used), said)


def stretch(folder: Path, kind: str) -> None:
    """Give a written model rotary positions of another type."""
    config = json.loads((folder / "config.json").read_text())
    parameters = config["rope_parameters"]
    parameters.get("full_attention", parameters).update(SCALING[kind], rope_type=kind)
    if kind == "longrope":
        config["original_max_position_embeddings"] = 16
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_f16_says_what_pytorch_says(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / "model", layers=6 if family == "gemma3_text" else 2)
    file = write(folder, tmp_path / "model.gguf", "F16")
    found = measured(folder, file)
    assert found.kl <= 1e-4
    assert found.positions == 40
    config, tokenizer = AutoConfig.from_pretrained(folder), open_tokenizer(folder)
    assert planned_bytes(config, tokenizer, "F16", name="tiny", licence="Apache-2.0") == file.stat().st_size


@pytest.mark.parametrize("family", WINDOWED)
def test_beyond_the_window_and_after_another_text(family: str, tmp_path: Path) -> None:
    # Windows of 16. A text that shares no beginning with the one before must not be answered from what that one left.
    folder = tiny_model(family, tmp_path / "model", layers=6 if family == "gemma3_text" else 2)
    found = measured(folder, write(folder, tmp_path / "model.gguf", "F16"), 160, 64, 32)
    assert found.positions == 256
    assert found.largest_kl <= 1e-4


@pytest.mark.parametrize("family", ["mistral", "phi3", "qwen3"])
def test_a_window_that_llama_cpp_lacks_ends_the_context(family: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / "model", layers=2)

    def set_window(window: int) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["sliding_window"] = window
        if family == "qwen3":
            config |= {"use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]}
        (folder / "config.json").write_text(json.dumps(config))

    set_window(256)
    file = write(folder, tmp_path / "model.gguf", "F16")
    name = GGUFReader(file).fields["general.architecture"].contents()
    assert GGUFReader(file).fields[f"{name}.context_length"].contents() == 256
    assert measured(folder, file, 255).kl <= 1e-4
    tokens = list(range(5, 305))
    with Engine(file, EngineOptions(context=1024)) as engine, pytest.raises(EngineFailed, match="256 tokens"):
        engine.complete({"prompt": tokens, "max_tokens": 1})
    set_window(16)
    with pytest.raises(UnsupportedModel, match=rf"{family}.*after 16 tokens"):
        write(folder, tmp_path / "small.gguf", "F16")
    # A window that no text fills is none.
    set_window(4096)
    file = write(folder, tmp_path / "wide.gguf", "F16")
    assert GGUFReader(file).fields[f"{name}.context_length"].contents() == 2048


def test_what_llama_cpp_takes_for_granted_of_gemma(tmp_path: Path) -> None:
    folder = tiny_model("gemma3_text", tmp_path / "model", layers=6)
    original = json.loads((folder / "config.json").read_text())

    def change(**values: Any) -> None:
        config = json.loads(json.dumps(original))
        config["rope_parameters"]["sliding_attention"] |= values.pop("local", {})
        (folder / "config.json").write_text(json.dumps(config | values))

    change(local={"rope_theta": 500.0})
    assert measured(folder, write(folder, tmp_path / "local.gguf", "F16")).kl <= 1e-4
    change(local={"rope_type": "linear", "factor": 4.0})
    with pytest.raises(UnsupportedModel, match=r"windowed layers.*linear"):
        write(folder, tmp_path / "refused.gguf", "F16")
    change(query_pre_attn_scalar=40)
    with pytest.raises(UnsupportedModel, match=r"query_pre_attn_scalar.*40"):
        write(folder, tmp_path / "refused.gguf", "F16")
    # Windows in another order are in the file.
    change(
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
        + ["sliding_attention"] * 2
    )
    assert measured(folder, write(folder, tmp_path / "order.gguf", "F16")).kl <= 1e-4
    assert not (tmp_path / "refused.gguf").exists()


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_a_gemma_without_a_cap_is_refused_by_name(key: str, tmp_path: Path) -> None:
    folder = tiny_model("gemma2", tmp_path / "model", layers=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: None}))
    with pytest.raises(UnsupportedModel, match=rf"{key}.*gemma2"):
        write(folder, tmp_path / "refused.gguf", "F16")
    assert not (tmp_path / "refused.gguf").exists()


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "llama3"), ("llama", "linear"), ("gemma3_text", "linear"), ("qwen2", "yarn"), ("phi3", "longrope")],
)
def test_stretched_rotary_positions(family: str, kind: str, tmp_path: Path) -> None:
    folder = tiny_model(family, tmp_path / "model", layers=6 if family == "gemma3_text" else 2)
    stretch(folder, kind)
    assert measured(folder, write(folder, tmp_path / "model.gguf", "F16")).kl <= 1e-4


def test_what_llama_cpp_cannot_rotate_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_model("granite", tmp_path / "granite", layers=2)
    stretch(folder, "llama3")
    with pytest.raises(UnsupportedModel, match=r"llama3.*granite"):
        write(folder, tmp_path / "model.gguf", "F16")
    folder = tiny_model("qwen3", tmp_path / "qwen3", layers=2)
    SCALING["yarn-own"] = SCALING["yarn"] | {"attention_factor": 2.0}
    stretch(folder, "yarn-own")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_type"] = "yarn"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="attention_factor"):
        write(folder, tmp_path / "model.gguf", "F16")
    assert not list(tmp_path.glob("*.gguf"))


def test_every_type_is_planned_to_the_byte_and_close_by_its_bits(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model", layers=2, hidden=256, padding_rows=5)
    config, tokenizer = AutoConfig.from_pretrained(folder), open_tokenizer(folder)
    importance = {
        f"model.layers.{layer}.{name}.weight": np.full(width, 0.5 + layer, np.float32)
        for layer in range(2)
        for name, width in (("self_attn.q_proj", 256), ("mlp.down_proj", 512))
    }
    weights = {}
    for kind in GGUF_TYPES:
        file = write(folder, tmp_path / f"{kind}.gguf", kind, rows=512, importance=importance)
        planned = planned_bytes(config, tokenizer, kind, name="tiny", licence="Apache-2.0", rows=512)
        assert file.stat().st_size == planned, kind
        found = {entry.name: entry for entry in GGUFReader(file).tensors}
        assert list(found["token_embd.weight"].shape) == [256, 512]
        weights[kind] = {name: dequantize(entry.data, entry.tensor_type) for name, entry in found.items()}
    errors = []
    for kind in GGUF_TYPES:
        pairs = [(weights[kind][name], exact) for name, exact in weights["F32"].items() if exact.ndim == 2]
        errors.append(max(float(np.square(a - b).mean() / np.square(b).mean()) for a, b in pairs))
    # BF16 has fewer bits of fraction than F16, and each type after it is coarser than the one before.
    order = [index for index, kind in enumerate(GGUF_TYPES) if kind not in ("BF16", "IQ4_NL")]
    assert [errors[index] for index in order] == sorted(errors[index] for index in order)
    assert measured(folder, tmp_path / "Q8_0.gguf", rows=512).kl < 1e-2
    assert measured(folder, tmp_path / "Q4_K_M.gguf", rows=512).kl < 0.3


def test_a_file_that_disagrees_is_refused(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model", layers=2)
    other = tiny_model("llama", tmp_path / "other", layers=2, seed=1)
    found = measured(folder, write(other, tmp_path / "other.gguf", "F16"))
    assert found.kl > 0.1
    with pytest.raises(ExportMismatch, match="mean KL"):
        require_agreement(found, "F16", 1e-3, tmp_path / "other.gguf")
    with pytest.raises(ExportMismatch):
        require_agreement(Agreement(float("nan"), 0.0, 1.0, 1), "F16", 1e-3, tmp_path / "other.gguf")


@pytest.mark.parametrize("kind", ["bpe", "qwen", "bpe_fallback"])
def test_tokenizers_go_along(kind: Any, tmp_path: Path) -> None:
    family = "qwen3" if kind == "qwen" else "llama"
    folder = tiny_model(family, tmp_path / "model", layers=2, tokenizer=kind)
    file = write(folder, tmp_path / "model.gguf", "F16")
    tokenizer = open_tokenizer(folder)
    require_same_tokens(tokenizer, file, list(SAMPLES))
    assert GGUFReader(file).fields["tokenizer.chat_template"].contents() == tokenizer.chat_template
    other = open_tokenizer(tiny_model(family, tmp_path / "other", layers=2, tokenizer=kind, vocabulary_size=600))
    with pytest.raises(ExportMismatch, match="ids"):
        require_same_tokens(other, file, list(SAMPLES))


def test_a_unigram_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path / "model", layers=2, tokenizer="unigram")
    with pytest.raises(UnsupportedModel, match="Unigram"):
        write(folder, tmp_path / "model.gguf", "F16")
