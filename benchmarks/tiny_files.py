"""GGUF files of tiny random models, run by llama.cpp and compared with PyTorch."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from benchmarks.tiny_configs import VOCABULARY, exportable_config, tiny_model

PROMPTS = (5, 12, 40, 80, 120)
"""Tokens of the prompts: the last are longer than the windows of the tiny models."""


def tokenizer() -> Any:
    """A byte-level tokenizer of as many ids as the tiny models have rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 4]
    tokens = ["<pad>", "<s>", "</s>", "<|endoftext|>", *letters]  # the last is what Qwen's class adds
    rules = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=rules, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


@functools.cache
def words() -> Any:
    """The same with a merge, which llama.cpp wants."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    rules = json.loads(tokenizer().backend_tokenizer.to_str())
    vocabulary = rules["model"]["vocab"]
    first, second, gone = sorted(vocabulary, key=vocabulary.__getitem__)[-3:]
    vocabulary[first + second] = vocabulary.pop(gone)
    rules["model"]["merges"] = [[first, second]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def perturbed(config: Any) -> Any:
    """A tiny random model of a config; norms, biases and other small tensors are not what they begin as."""
    import torch
    from transformers import AutoModelForCausalLM

    model = tiny_model(config, AutoModelForCausalLM)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() == 1 and any(part in name for part in ("norm", "bias", "sinks", "ln_")):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
        for parameter in model.parameters():
            parameter.copy_(parameter.half())  # what a file of type F16 holds
    return model


def model_of(family: str) -> Any:
    """A tiny random model of a family, with only what llama.cpp has of it."""
    return perturbed(exportable_config(family))


def divergences(model: Any, file: Path, lengths: tuple[int, ...] = PROMPTS) -> list[float]:
    """KL(PyTorch || file) in nats at the last positions of random prompts, ascending."""
    import torch

    from stillroom.formats.check import _listed, agreement
    from stillroom.runtime.engine import Engine, EngineOptions

    generator = torch.Generator().manual_seed(9)
    prompts = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    with Engine(file, EngineOptions(context=256, exact=True)) as engine:
        said = [[_listed(engine, ids, VOCABULARY, 5)] for ids in prompts]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1:].float() for ids in prompts]
    return sorted(
        agreement([torch.log_softmax(row, dim=1)], [there]).kl for row, there in zip(logits, said, strict=True)
    )


def exported(model: Any, folder: Path, lengths: tuple[int, ...] = PROMPTS, kind: str = "F16") -> list[float]:
    """Write a model's file into a folder and compare it with the model as it opens again; as :func:`divergences`.

    Raises:
        StillroomError: The file cannot be written, by name.
        AssertionError: Its size is not the planned one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from stillroom.formats.gguf_file import planned_bytes, write_gguf
    from stillroom.models.tokenizer import open_tokenizer

    opener: Any = AutoModelForCausalLM
    model.save_pretrained(folder / "model")
    words().save_pretrained(folder / "model")
    file = folder / "tiny.gguf"
    write_gguf(folder / "model", file, kind, name="tiny", licence=None)
    planned = planned_bytes(model.config, open_tokenizer(folder / "model"), kind, name="tiny", licence=None)
    assert file.stat().st_size == planned, f"{file.stat().st_size} bytes, and {planned} were planned"
    again = opener.from_pretrained(folder / "model", dtype=torch.float32).eval()
    return divergences(again, file, lengths)
