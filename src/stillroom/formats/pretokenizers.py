"""Which of llama.cpp's byte-level pre-tokenizers a tokenizer is, proved: the runtime makes the same ids of many texts.

llama.cpp knows how to split text into words by name only, and each name stands for patterns of its own. A tokenizer whose
pattern is not in the table of :mod:`stillroom.formats.vocabulary` is tried under every name: a file with its vocabulary and a
model of almost nothing is loaded, and texts are tokenized there and here. The first name with equal ids is taken; without one
the tokenizer is refused.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGUFWriter

from stillroom.core.errors import EngineFailed
from stillroom.runtime.engine import Engine, EngineOptions

if TYPE_CHECKING:
    from stillroom.models.types import Tokenizer

    Add = Callable[[GGUFWriter, Tokenizer, int, str], None]

NAMES = (
    "qwen35", "gpt-4o", "llama-bpe", "qwen2", "tekken", "deepseek-v3", "deepseek-llm", "deepseek-coder", "glm4", "seed-coder",
    "refact", "command-r", "gpt-2", "smollm", "exaone", "exaone-moe", "falcon", "falcon3", "bloom", "mpt", "olmo", "dbrx",
    "starcoder", "stablelm2", "chatglm-bpe", "kimi-k2", "minimax-m2", "hunyuan", "llama4", "superbpe", "bailingmoe", "trillion",
    "tiny_aya", "youtu", "jais-2", "grok-2", "afmoe", "solar-open", "lfm2", "codeshell", "default",
)  # fmt: skip
"""Names that the runtime knows; those of more models first."""
FRAGMENTS = (
    *[
        "word",
        "Word",
        "WORD",
        "camelCase",
        "HTMLParser",
        "snake_case",
        "it's",
        "IT'S",
        "we'll",
        "WE'LL",
        "don't've",
        "naïve",
        "GRÖSSE",
        "Straße",
        "ﬁ",
        "здравствуй",
        "МИР",
        "東京",
        "日本語テキスト",
        "한국어",
        "ไทย",
        "हिन्दी",
        "العربية",
        "שלום",
        "😀",
        "🇩🇪",
        "1",
        "12",
        "123",
        "1234",
        "12345",
        "1234567",
        "3.14",
        "1,000",
        "½",
        "²",
        "٣٤",
        ".",
        ",",
        "...",
        "?!",
        "--",
        "(x)",
        "[1]",
        "/path/to",
        "http://a.b/c?d=e",
        "a+b=c;",
        "x**2",
        "$9.99",
        "100%",
        "#tag",
        "@me",
        "_",
        "__init__",
        "'",
        "`",
        "~",
        "<b>",
        "…",
        "—",
        "«a»",
        "。",
        "，",
        "！",
    ],
    "👩\u200d👩\u200d👧",
    " ",
    "  ",
    "   ",
    "\t",
    "\t\t",
    "\n",
    "\n\n",
    "\n \n",
    " \n",
    "\r\n",
    "\u00a0",
    "\u3000",
    "{a: b}",
    '"',
    "\\n",
    "\u200b",
)
"""What texts are put together from: cases, contractions, digits, scripts, spaces, signs and code."""
TEXTS = 1000
"""Texts that have to be equal."""


def texts() -> list[str]:
    """The texts: every fragment alone and before a word, then random sequences of them."""
    generator = random.Random(0)  # noqa: S311 - the same texts each time
    found = [*FRAGMENTS, *(f"{fragment} a" for fragment in FRAGMENTS), *(f"a{fragment}b" for fragment in FRAGMENTS)]
    while len(found) < TEXTS:
        found.append("".join(generator.choices(FRAGMENTS, k=generator.randint(2, 8))))
    return found


def proved_name(tokenizer: Tokenizer, add: Add, names: tuple[str, ...] = NAMES) -> str | None:
    """The first name under which the runtime makes the tokenizer's ids of all texts; None where there is none.

    Args:
        tokenizer: A byte-level tokenizer.
        add: Writes a tokenizer of so many rows into a file under a name.
        names: What to try, in this order.

    Raises:
        SwitchedOff: The runtime may not be started.
    """
    wanted = [(text, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts()]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            file = Path(folder) / "vocabulary.gguf"
            _write(tokenizer, add, name, file)
            try:
                if _agrees(file, wanted):
                    return name
            except EngineFailed:
                continue  # a name that this runtime does not know
    return None


def _agrees(file: Path, wanted: list[tuple[str, list[int]]]) -> bool:
    with Engine(file, EngineOptions(context=256)) as engine:
        return all(
            engine.call("POST", "/tokenize", {"content": text, "add_special": False})["tokens"] == ids
            for text, ids in wanted
        )


def _write(tokenizer: Tokenizer, add: Add, name: str, file: Path) -> None:
    """A file with the vocabulary under a pre-tokenizer's name, and the smallest model that the runtime loads."""
    rows, width = max(tokenizer.get_vocab().values()) + 1, 32
    writer = GGUFWriter(file, "llama")
    try:
        for write, value in (
            (writer.add_context_length, 256),
            (writer.add_embedding_length, width),
            (writer.add_block_count, 1),
            (writer.add_feed_forward_length, width),
            (writer.add_head_count, 1),
            (writer.add_head_count_kv, 1),
            (writer.add_vocab_size, rows),
        ):
            write(value)
        writer.add_layer_norm_rms_eps(1e-5)
        add(writer, tokenizer, rows, name)
        square = np.eye(width, dtype=np.float32)
        writer.add_tensor("token_embd.weight", np.zeros((rows, width), dtype=np.float16))
        writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.0.{part}.weight", np.ones(width, dtype=np.float32))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            writer.add_tensor(f"blk.0.{part}.weight", square)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
