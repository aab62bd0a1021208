"""Tiny random models of every family, written to disk as Hugging Face folders: what tests use as teachers.

Each has a fast tokenizer trained on Python's own documentation, special tokens, and a chat template. Weights are drawn
wide enough that predictions are far from uniform, and norms and biases are not left at one and zero, so that a mistake
with any of them shows.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from stillroom.models.tokenizer import quietly

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillroom.models.types import CausalModel

Kind = Literal["bpe", "qwen", "unigram", "bpe_fallback"]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3", "granite")
WINDOWED = ("gemma2", "gemma3_text")
"""Families of which some layers always see a window only."""
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LOGIT_SPREAD = 1.5
"""Standard deviation of logits."""


def tiny_model(
    family: str,
    folder: Path,
    *,
    vocabulary_size: int = 512,
    padding_rows: int = 0,
    tied: bool | None = None,
    layers: int = 4,
    hidden: int = 64,
    seed: int = 0,
    tokenizer: Kind | None = None,
    sliding_window: int | None = None,
) -> Path:
    """Write a tiny random model and return its folder.

    Args:
        family: One of ``FAMILIES``, or another ``model_type`` whose config has Llama's keys.
        folder: Where to; made when missing.
        vocabulary_size: Ids of the tokenizer.
        padding_rows: Rows of the embedding behind the tokenizer's ids.
        tied: Whether input and output embeddings are one; None does as the family's config does by default.
        layers: Layers; every sixth of Gemma 3 and every second of Gemma 2 attends to everything.
        hidden: Width; four heads of a quarter of it, two of them for keys and values.
        seed: Of the weights.
        tokenizer: ``bpe`` (byte-level), ``qwen`` (the same with Qwen's rules), ``unigram`` or ``bpe_fallback``
            (SentencePiece's rules, with bytes for what is unknown); None gives what the family has. transformers gives
            Qwen 2 its own rules whatever the file says, so there is no other for it.
        sliding_window: Window of attention; None gives Gemma 16 and the others none.
    """
    kind = tokenizer or default_tokenizer(family)
    if family == "qwen2" and kind != "qwen":
        raise ValueError("transformers reads every tokenizer of a qwen2 model by Qwen's rules")
    words = make_tokenizer(kind, vocabulary_size)
    model = make_model(
        family,
        rows=len(words) + padding_rows,
        tokenizer=words,
        tied=tied,
        layers=layers,
        hidden=hidden,
        seed=seed,
        sliding_window=sliding_window,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with quietly():
        model.save_pretrained(folder)
        words.save_pretrained(folder)
    return folder


FP8_BLOCK = 32
"""Rows and columns with one scale of :func:`quantized_fp8`."""


def quantized_fp8(original: Path, folder: Path) -> Path:
    """A copy of a model in ``folder`` with the matrices of its layers in FP8, one scale for each block; returns the folder."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(original, folder)
    tensors = {}
    for name, weight in load_file(original / "model.safetensors").items():
        tensors[name] = weight
        if "_proj" in name:
            rows, columns = weight.shape
            blocks = weight.reshape(rows // FP8_BLOCK, FP8_BLOCK, columns // FP8_BLOCK, FP8_BLOCK)
            scales = blocks.abs().amax((1, 3)) / 448
            tensors[name] = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).flatten(0, 1).flatten(1)
            tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    block = [FP8_BLOCK, FP8_BLOCK]
    with_quantization(folder, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block})
    return folder


def with_quantization(folder: Path, said: dict[str, Any]) -> None:
    """Have a folder's config say how its weights are quantized."""
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": said}
    (folder / "config.json").write_text(json.dumps(config))


def default_tokenizer(family: str) -> Kind:
    """The kind of tokenizer that models of a family come with."""
    if family in ("qwen2", "qwen3"):
        return "qwen"
    return "bpe_fallback" if family in WINDOWED else "bpe"


def make_model(
    family: str,
    *,
    rows: int,
    tokenizer: PreTrainedTokenizerFast | None = None,
    tied: bool | None = None,
    layers: int = 4,
    hidden: int = 64,
    seed: int = 0,
    sliding_window: int | None = None,
) -> CausalModel:
    """The model of :func:`tiny_model` in memory, float32, in evaluation mode. ``rows`` is its vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id if tokenizer else None,
        "eos_token_id": tokenizer.eos_token_id if tokenizer else None,
        "pad_token_id": tokenizer.pad_token_id if tokenizer else None,
    }
    if family not in ("phi3", "olmo2", "qwen2", "smollm3", "granite"):  # These take it from width and heads.
        options["head_dim"] = hidden // 4
    if tied is not None:
        options["tie_word_embeddings"] = tied
    if family in WINDOWED:
        options |= {"sliding_window": sliding_window or 16, "query_pre_attn_scalar": hidden // 4}
    elif family in ("mistral", "phi3"):
        options["sliding_window"] = sliding_window
    elif sliding_window is not None:
        raise ValueError(f"{family} has no sliding window here")
    if family == "phi3":
        options["original_max_position_embeddings"] = 2048
    if family == "granite":
        options |= {
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
        }
    config = AutoConfig.for_model(family, **options)
    model: CausalModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    _draw(model, seed)
    _spread(model, seed)
    return model


@torch.no_grad()
def _draw(model: CausalModel, seed: int) -> None:
    """Fill every parameter from one generator, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 2:
            embedding = "embed" in name or "lm_head" in name
            parameter.copy_(noise * (0.2 if embedding else 1 / math.sqrt(parameter.shape[1])))
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        else:
            # Gemma stores a norm's weight minus one.
            centre = 0.0 if model.config.model_type.startswith("gemma") else 1.0
            parameter.copy_(centre + 0.1 * noise)


@torch.no_grad()
def _spread(model: CausalModel, seed: int) -> None:
    """Scale the output matrix (also the input's where they are one) until the logits have ``LOGIT_SPREAD``."""
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(0, model.config.vocab_size, (4, 32), generator=generator)
    layer: Any = model.get_output_embeddings()
    for _ in range(3):
        layer.weight.mul_(LOGIT_SPREAD / model(input_ids=ids, use_cache=False).logits.std())


def make_tokenizer(kind: Kind, size: int = 512) -> PreTrainedTokenizerFast:
    """A tokenizer trained on Python's own documentation; the same for the same arguments."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    bos = kind in ("unigram", "bpe_fallback")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_rules(kind, size)),
        bos_token="<s>" if bos else None if kind == "qwen" else "<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<unk>" if bos else "<|endoftext|>",
        pad_token="</s>" if bos else "<|endoftext|>",
        chat_template=CHAT_TEMPLATE if bos else CHAT_TEMPLATE.removeprefix("{{ bos_token }}"),
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _rules(kind: Kind, size: int) -> str:
    tokenizer = _byte_level(kind, size) if kind in ("bpe", "qwen") else _sentence_piece(kind, size)
    rules: str = tokenizer.to_str()
    return rules


def _byte_level(kind: Kind, size: int) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "qwen":
        from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(), trainer)
    return tokenizer


def _sentence_piece(kind: Kind, size: int) -> Any:
    """SentencePiece's rules: a space is a letter of its own, and what has no piece falls back to its bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<unk>", "<s>", "</s>"]
    chat = ["<|im_start|>", "<|im_end|>"]
    byte_pieces = [f"<0x{value:02X}>" for value in range(256)]
    fixed = [*special, *chat, *byte_pieces]
    spaces = normalizers.Replace(" ", "▁")
    trained = Tokenizer(models.BPE())
    trained.normalizer = spaces
    # Words are kept apart while pieces are found, so that no piece spans two.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trained.train_from_iterator(
        _text(), trainers.BpeTrainer(vocab_size=size - len(fixed), limit_alphabet=96, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if kind == "bpe_fallback":
        vocabulary = {piece: index for index, piece in enumerate([*fixed, *pieces])}
        merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    else:
        counts = Counter(token for text in _text() for token in trained.encode(text).tokens)
        total = sum(counts.values())
        scored = [(piece, math.log((counts[piece] + 0.5) / total)) for piece in pieces]
        tokenizer = Tokenizer(models.Unigram([(piece, 0.0) for piece in fixed] + scored, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in [*special, *chat]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@functools.cache
def _text() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    return tuple(topics[name] for name in sorted(topics))
