"""Tiny random models of every family that can be pruned along every axis, in memory, and tokenizers trained on the spot."""

from __future__ import annotations

from typing import Any

import torch

from stillroom.corpus.sequences import Sequences
from stillroom.models.families.registry import families

TWINS = ("cwm", "internlm3", "ministral")
"""Families whose description is Llama's under another name: one of them is enough."""
FAMILIES = sorted(name for name, family in families().items() if family.uniform and name not in TWINS)
"""Those that can be pruned along every axis; of the others see ``test_student_families.py``."""
LAYERS, WIDTH, CHANNELS, HEADS, GROUPS, HEAD, IDS = 6, 32, 48, 4, 2, 8, 96


def tiny(family: str, tied: bool = True, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
    """A random model; in float64, but norms compute in float32 all the same."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    values: dict[str, Any] = {
        "vocab_size": IDS,
        "hidden_size": WIDTH,
        "intermediate_size": CHANNELS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family.startswith("gemma"):
        values["sliding_window"] = 16
        values["query_pre_attn_scalar"] = HEAD
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**values)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.requires_grad_(False)
    return model


def tiny_sequences(count: int = 4, length: int = 24, ids: int = IDS, seed: int = 0) -> Sequences:
    """Random packed sequences of two documents each."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(3, ids, (count, length), generator=generator)
    segments = torch.zeros(count, length, dtype=torch.int32)
    segments[:, length // 3 :] = 1
    documents = segments + 2 * torch.arange(count, dtype=torch.int32)[:, None]
    return Sequences(
        values,
        segments,
        torch.ones(count, length, dtype=torch.bool),
        documents,
        torch.ones(count, length, dtype=torch.int32),
        torch.zeros(2 * count, dtype=torch.int32),
    )


TEXT = (
    "The quick brown fox jumps over the lazy dog. Whereas recognition of the inherent dignity and of the equal rights "
    "is the foundation of freedom, justice and peace in the world, 1234567890 numbers, "
    "naïve café, größer, 東京, здравствуй! "
)


def bpe_tokenizer(size: int = 600, byte_fallback: bool = False, ignore_merges: bool = False) -> Any:
    """A byte-pair encoding: byte-level, or with characters and bytes to fall back on."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    if byte_fallback:
        raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        bytes_ = [f"<0x{value:02X}>" for value in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=size + 256, special_tokens=special + bytes_, show_progress=False)
    else:
        raw = Tokenizer(models.BPE(ignore_merges=ignore_merges))
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        raw.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    raw.train_from_iterator([TEXT, TEXT.lower(), TEXT.upper()] * 3, trainer)
    if byte_fallback:
        # Bytes were trained as special tokens; what falls back to them must be plain ones.
        import json

        rules = json.loads(raw.to_str())
        rules["added_tokens"] = [entry for entry in rules["added_tokens"] if entry["content"] in special]
        raw = Tokenizer.from_str(json.dumps(rules))
    raw.add_special_tokens([AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram_tokenizer(size: int = 300) -> Any:
    """A Unigram model with an unknown piece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    raw.train_from_iterator([TEXT, TEXT.lower(), TEXT.upper()] * 3, trainer)
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", raw.token_to_id("<s>")), ("</s>", raw.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
