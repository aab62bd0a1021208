"""Opens tokenizers, and identifies them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core import files
from stillroom.core.errors import TeacherError, first_line, translate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 over a tokenizer's rules, vocabulary and chat template."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return files.digest_json({"tokenizer": rules, "template": tokenizer.chat_template})


def control_texts(tokenizer: PreTrainedTokenizerFast) -> set[str]:
    """The spellings of a tokenizer's special tokens: in a text, each is read as the token itself."""
    added = tokenizer.added_tokens_decoder.values()
    return {token.content for token in added if token.special} | {str(token) for token in tokenizer.all_special_tokens}


def open_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face folder (or of a GGUF file in it: ``gguf_file=``). Errors as in :func:`load_teacher`."""
    from transformers import AutoTokenizer

    try:
        with quietly():
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, use_fast=True, **options
            )
    except Exception as error:
        raise translate(error, str(folder)) or TeacherError(
            f"{folder}: the tokenizer cannot be loaded: {first_line(error)}",
            "Check that tokenizer.json is there and whole.",
        ) from None
    if not tokenizer.is_fast:
        raise TeacherError(f"{folder}: only a slow tokenizer is there.", "Save the model with its tokenizer.json.")
    tokenizer.name_or_path = ""
    _one_template(folder, tokenizer)
    opened: PreTrainedTokenizerFast = tokenizer
    return opened


def _one_template(where: Path, tokenizer: Any) -> None:
    """Of several named chat templates, the one for ordinary chats: what everything that renders or exports one takes."""
    named = tokenizer.chat_template
    if not isinstance(named, dict):
        return
    chosen = named.get("default", next(iter(named.values())) if len(named) == 1 else None)
    if chosen is None:
        raise TeacherError(
            f"{where}: its tokenizer has several chat templates ({', '.join(sorted(named))}), and none is called `default`.",
            "Leave the one that is meant in tokenizer_config.json.",
        )
    tokenizer.chat_template = chosen


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keep a library's own progress bars and warnings off the terminal."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # transformers' GGUF import draws its own bar, whatever it is told.
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
