"""Every family with a GGUF layout: a tiny random model's file, run by llama.cpp, says what PyTorch says."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.models import tokenizer
from benchmarks.tiny_configs import VOCABULARY, exportable_config, tiny_model
from stillroom.formats.check import _listed, agreement
from stillroom.formats.gguf_file import planned_bytes, write_gguf
from stillroom.models.families.registry import families
from stillroom.models.tokenizer import open_tokenizer
from stillroom.runtime.engine import Engine, EngineOptions

EXPORTED = sorted(name for name, family in families().items() if family.gguf is not None)
PROMPTS = (5, 12, 40, 80, 120)
"""Tokens of the prompts: the last is longer than the windows of the tiny models."""
LIMIT, LARGEST = 1e-4, 3e-2
"""KL in nats at the last positions of the prompts, for a file of type F16: the median, and the largest. A near tie of a
router, or of a norm over almost nothing, makes one prompt differ."""


@functools.cache
def words() -> Any:
    """A byte-level tokenizer with a merge, which llama.cpp wants, of as many ids as the tiny models have rows."""
    rules = json.loads(tokenizer().backend_tokenizer.to_str())
    vocabulary = rules["model"]["vocab"]
    first, second, gone = sorted(vocabulary, key=vocabulary.__getitem__)[-3:]
    vocabulary[first + second] = vocabulary.pop(gone)
    rules["model"]["merges"] = [[first, second]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def model_of(family: str) -> Any:
    """A tiny random model; norms, biases and other small tensors are not what they begin as."""
    config = exportable_config(family)
    model = tiny_model(config, AutoModelForCausalLM)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1 and any(part in name for part in ("norm", "bias", "sinks", "ln_")):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
        for parameter in model.parameters():
            parameter.copy_(parameter.half())  # what a file of type F16 holds
    return model


def divergences(model: Any, file: Path) -> list[float]:
    """KL(PyTorch || file) at the last positions of random prompts, ascending."""
    generator = torch.Generator().manual_seed(9)
    prompts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in PROMPTS]
    with Engine(file, EngineOptions(context=256)) as engine:
        said = [[_listed(engine, ids, VOCABULARY, 5)] for ids in prompts]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1:].float() for ids in prompts]
    return sorted(
        agreement([torch.log_softmax(row, dim=1)], [there]).kl for row, there in zip(logits, said, strict=True)
    )


@pytest.mark.parametrize("family", EXPORTED)
def test_llama_cpp_says_what_pytorch_says(family: str, tmp_path: Path) -> None:
    model = model_of(family)
    model.save_pretrained(tmp_path / "model")
    words().save_pretrained(tmp_path / "model")
    file = tmp_path / "tiny.gguf"
    write_gguf(tmp_path / "model", file, "F16", name="tiny", licence=None)
    tokenizer_there = open_tokenizer(tmp_path / "model")
    assert file.stat().st_size == planned_bytes(model.config, tokenizer_there, "F16", name="tiny", licence=None)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    found = divergences(again, file)
    assert found[len(found) // 2] < LIMIT
    assert found[-1] < LARGEST
