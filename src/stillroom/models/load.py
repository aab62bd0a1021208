"""Opens teachers and students: Hugging Face folders and names, and GGUF files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core import files, progress
from stillroom.core.errors import RecipeError, TeacherError, UnsupportedModel, first_line, translate
from stillroom.core.model_card import front_matter, licences_of
from stillroom.inspection.inspect import require_safe
from stillroom.models.at_hand import Keep, hold
from stillroom.models.checkpoint import (
    StoredTensor,
    odd_tensor,
    require_numbers,
    require_rows,
    require_same,
    require_stored,
    require_tied,
    require_whole,
    stored_tensors,
    unused_tensors,
    weight_files,
)
from stillroom.models.gguf_model import gguf_config, open_gguf
from stillroom.models.gguf_source import gguf_checked, gguf_facts, gguf_path, gguf_tokenizer
from stillroom.models.inside import open_inside, text_config
from stillroom.models.kinds import kind_of
from stillroom.models.proof import prove
from stillroom.models.stored_as import as_floats, quantization_of, require_scales
from stillroom.models.tokenizer import open_tokenizer, quietly, tokenizer_digest
from stillroom.recipe.teacher import EndpointTeacher, GgufTeacher, HuggingFaceTeacher
from stillroom.switch import is_on, require_on

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from stillroom.models.types import CausalModel, ModelConfig

SLOW_TOKENIZER = ("merges.txt", "vocab.txt", "bpe.codes", ".bpe", ".spm", ".tiktoken", ".vocab")
"""Endings of files that tokenizers are read from besides JSON and ``.model``: merges, word lists, sentencepiece, tiktoken."""
MODEL_FILES = (
    "*.safetensors", "*.json", "*.jinja", "*.model", *(f"*{ending}" for ending in SLOW_TOKENIZER),
    "*[Ll][Ii][Cc][Ee][Nn][CcSs][Ee]*", "[Cc][Oo][Pp][Yy][Ii][Nn][Gg]*", "[Ee][Uu][Ll][Aa]*", "NOTICE*",
    "*[Uu][Ss][Ee][ _-][Pp][Oo][Ll][Ii][Cc][Yy]*", "[Rr][Ee][Aa][Dd][Mm][Ee].md",
)  # fmt: skip
"""What is fetched of a model on the hub."""


CHEAP = 256 << 20
"""Bytes of weights up to which a model is loaded twice where transformers leaves some of its tensors to chance."""


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
        config_digest: SHA-256 over what its config says of the computation; None where ``digest`` covers it (GGUF).
        notes: What is to be said of how it is run.
        quantization: How its weights are stored, in words; None where they are floats, or in a GGUF file, which says it.
    """

    model: CausalModel
    tokenizer: PreTrainedTokenizerFast
    name: str
    family: str
    digest: str
    tokenizer_digest: str
    licence: str | None
    stored_bytes: int
    config_digest: str | None = None
    notes: tuple[str, ...] = ()
    quantization: str | None = None

    @property
    def parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return count_parameters(self.model)


def count_parameters(model: CausalModel) -> int:
    """Parameters of a model, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_teacher(
    config: HuggingFaceTeacher | GgufTeacher | EndpointTeacher,
    device: torch.device | str,
    dtype: torch.dtype,
    keep: Keep = "device",
) -> LoadedTeacher:
    """Load a teacher.

    Args:
        config: The recipe's section.
        device: Where it computes.
        dtype: What it computes in.
        keep: Where and how its layers are stored (:mod:`stillroom.models.at_hand`).

    Raises:
        TeacherError: It is missing or cannot be read.
        InspectionRefused: It is not safe to open.
        VerificationFailed: It is inside a package that cannot prove what it claims.
        UnsupportedModel: Its family is not a causal language model that transformers knows.
    """
    progress.ask()
    notes: tuple[str, ...] = ()
    quantization: str | None = None
    if isinstance(config, EndpointTeacher):
        raise TeacherError(
            f"The teacher {config.model} is behind an endpoint: its weights are not here.",
            "Use a teacher that is a model on this machine: `teacher: {kind: huggingface}` or `{kind: gguf}`.",
        )
    if isinstance(config, GgufTeacher):
        with gguf_checked(config) as path, _loading(path):
            model = _plain(open_gguf(path, dtype))
            tokenizer = gguf_tokenizer(path)
            facts = gguf_facts(path, path.stat().st_mtime_ns)
            name = str(facts.get("general.name") or path.stem)
            digest, stored = files.digest_file(path), path.stat().st_size
    else:
        folder = model_folder(config.name, config.revision)
        model, notes = _open_folder(folder, dtype)
        quantization = quantization_words(config)
        tokenizer = open_tokenizer(folder)
        name = Path(config.name).name if Path(config.name).exists() else config.name
        weights = sorted(folder.glob("*.safetensors"))
        digests = {}
        for file in weights:
            progress.ask()
            digests[file.name] = files.digest_file(file)
        digest = files.digest_json(digests)
        stored = sum(file.stat().st_size for file in weights)
    config_digest = None if isinstance(config, GgufTeacher) else digest_of_config(folder)
    progress.ask()
    model.eval().requires_grad_(requires_grad=False)
    hold(model, device, dtype, keep)
    require_rows(name, model, tokenizer)
    if keep == "host":
        notes += ("it is larger than the GPU's memory: its layers are in the host's, and carried over one at a time",)
    way = prove(model, again=_is_new(digest, config_digest, model)).way
    if not way.packed:
        notes += (f"it runs one document per row: {way.reason}",)
    return LoadedTeacher(
        model,
        tokenizer,
        name,
        model.config.model_type,
        digest,
        tokenizer_digest(tokenizer),
        stated_licence(config),
        stored,
        config_digest,
        notes,
        quantization,
    )


_OPENED: set[tuple[str | None, ...]] = set()
"""Teachers that were opened in this process: the same files in the same dtype need no other proof of how they are run."""


def _is_new(digest: str, config_digest: str | None, model: CausalModel) -> bool:
    parameter = next(model.parameters())
    key = (digest, config_digest, str(parameter.dtype), parameter.device.type)
    new = key not in _OPENED
    _OPENED.add(key)
    return new


NOT_COMPUTED = ("_name_or_path", "name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Keys of a config that change nothing in what a model computes (in which dtype it does is the recipe's to say)."""


def digest_of_config(folder: Path) -> str:
    """SHA-256 over a Hugging Face folder's config.json, without the keys that change nothing in what the model computes."""

    def computed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: computed(held) for key, held in value.items() if key not in NOT_COMPUTED}
        return [computed(held) for held in value] if isinstance(value, list) else value

    return files.digest_json(computed(files.read_json(folder / "config.json")))


AnyTeacher = HuggingFaceTeacher | GgufTeacher | EndpointTeacher
"""A teacher in a recipe's words. Of one behind an endpoint, tokenizer and config are here and weights are not."""


def _folder_of(config: HuggingFaceTeacher | EndpointTeacher) -> Path:
    """The folder with a teacher's tokenizer and config."""
    name = config.tokenizer if isinstance(config, EndpointTeacher) else config.name
    return model_folder(name, config.revision)


def stated_licence(config: AnyTeacher) -> str | None:
    """The licence as the recipe states it, or else the model's own metadata; None where neither does."""
    if config.licence:
        return config.licence
    if isinstance(config, GgufTeacher):
        path = gguf_path(config.path)
        return _text(gguf_facts(path, path.stat().st_mtime_ns).get("general.license"))
    return _card_licence(_folder_of(config))


def teacher_identity(
    config: AnyTeacher, digest: Callable[[Path], str] = files.digest_file, *, slow: bool = True
) -> dict[str, str]:
    """Digests that change when the teacher's stored files do: what a stage that loads it depends on.

    Args:
        config: The recipe's section.
        digest: Computes the SHA-256 of a file, or knows it.
        slow: Whether files that only tokenizers without ``tokenizer.json`` are read from count, such as ``merges.txt``. They
            did not in records that were written before they were looked at.
    """
    if isinstance(config, GgufTeacher):
        return {"teacher": digest(gguf_path(config.path))}
    folder = _folder_of(config)
    kinds: tuple[str, ...] = (
        (".json", ".jinja", ".model")
        if isinstance(config, EndpointTeacher)
        else (".safetensors", ".json", ".jinja", ".model")
    )
    kinds += SLOW_TOKENIZER if slow else ()
    names = sorted(file for file in folder.iterdir() if file.is_file() and file.name.endswith(kinds))
    found = {file.name: digest(file) for file in names}
    if isinstance(config, EndpointTeacher):
        # Where it is served changes nothing; which model answers is checked by its fingerprint when it is captured.
        return {"teacher": files.digest_json({"model": config.model, "files": found})}
    return {"teacher": files.digest_json(found)}


def teacher_config(config: AnyTeacher) -> ModelConfig:
    """The config of a teacher's language model; no weights are read. Errors as in :func:`load_teacher`."""
    found: Any
    if isinstance(config, GgufTeacher):
        found = gguf_config(gguf_path(config.path))
    else:
        kind = kind_of(_folder_of(config))
        found = kind.config if kind.inside is None else text_config(kind.config)
    known: ModelConfig = found
    return known


def without_weights(config: AnyTeacher) -> CausalModel:
    """A teacher's model on the meta device, as its config has it; nothing is loaded.

    Raises:
        TeacherError: No model can be made of it.
        UnsupportedModel: It is no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    known = teacher_config(config)
    try:
        with torch.device("meta"):
            model: CausalModel = AutoModelForCausalLM.from_config(known)
        model.tie_weights()
    except Exception as error:
        where = config.path if isinstance(config, GgufTeacher) else _folder_of(config)
        raise translate(error, str(where)) or TeacherError(
            f"{where}: no model of the family `{known.model_type}` can be made as its config says: {first_line(error)}",
            "Get the model's own config.json.",
        ) from None
    return model


def config_parameters(config: AnyTeacher) -> int:
    """Parameters of a teacher as its config says. Errors as in :func:`without_weights`."""
    return count_parameters(without_weights(config))


def quantization_words(config: AnyTeacher) -> str | None:
    """How the weights of a Hugging Face teacher are quantized, in words; None where they are floats, or it is another kind."""
    if not isinstance(config, HuggingFaceTeacher):
        return None
    found = quantization_of(files.read_json(_folder_of(config) / "config.json"))
    return None if found is None else found.words


def stored_in_half(config: AnyTeacher) -> bool:
    """Whether every weight of a teacher is stored in 16 bits, by the headers of its files; a GGUF file's are not counted so."""
    if not isinstance(config, HuggingFaceTeacher):
        return False
    folder = model_folder(config.name, config.revision)
    stored = stored_tensors(weight_files(folder, json.loads((folder / "config.json").read_bytes())))
    return bool(stored) and all(tensor.dtype in ("BF16", "F16") for tensor in stored.values())


def load_tokenizer(config: AnyTeacher) -> PreTrainedTokenizerFast:
    """The teacher's tokenizer alone. Errors as in :func:`load_teacher`."""
    if isinstance(config, GgufTeacher):
        with gguf_checked(config) as path:
            return gguf_tokenizer(path)
    return open_tokenizer(_folder_of(config))


def load_student(folder: Path, dtype: torch.dtype) -> tuple[CausalModel, PreTrainedTokenizerFast]:
    """A model that a run wrote or that exists, and its tokenizer. Errors as in :func:`load_teacher`.

    How it is run is proved when it is first used (:func:`stillroom.models.forward.way_of`).
    """
    require_safe(folder)
    model, _ = _open_folder(folder, dtype)
    tokenizer = open_tokenizer(folder)
    require_rows(str(folder), model, tokenizer)
    return model, tokenizer


def save_model(model: CausalModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
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

        here = not is_on("downloads")
        try:
            folder = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=list(MODEL_FILES),
                    ignore_patterns=["*.py"],
                    local_files_only=here,
                )
            )
        except Exception as error:
            require_on("downloads")
            raise translate(error, name) or TeacherError(
                f"{name} is neither a folder here nor available from the hub ({first_line(error)}).",
                "Check the name and the network, or give the path of a folder that holds the model.",
            ) from None
    if not (folder / "config.json").is_file():
        raise TeacherError(
            f"{folder}: no config.json, so this is not a Hugging Face model.", "Give the folder that holds it."
        )
    require_safe(folder)
    return folder


def _open_folder(folder: Path, dtype: torch.dtype) -> tuple[CausalModel, tuple[str, ...]]:
    """The causal language model of a folder, complete and finite, and what is to be said of it."""
    import transformers

    opener: Any = transformers.AutoModelForCausalLM
    kind = kind_of(folder)
    said = json.loads((folder / "config.json").read_bytes())
    stored = stored_tensors(weight_files(folder, said))
    options: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": False,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they come back by name, and are refused
    }
    model: Any
    notes = kind.notes
    quantization = quantization_of(said)
    require_scales(str(folder), said, stored)
    if quantization is not None:
        notes += (f"its weights are quantized ({quantization.words}); they are dequantized when it is loaded",)
    with _loading(folder, stored):
        options |= as_floats(said)
        if kind.inside is None:
            model, info = opener.from_pretrained(folder, **options)
            whole = model
        else:
            model, whole, info = open_inside(folder, kind, options)
            notes += (
                f"its language model (`{model.config.model_type}`) is taken from a `{kind.config.model_type}` model",
            )
    if quantization is not None:
        _require_dequantized(str(folder), whole, dtype)
    require_whole(str(folder), info, stored)
    require_stored(str(folder), whole, stored, quantized=quantization is not None)
    require_tied(str(folder), model)
    require_numbers(str(folder), whole)
    unused = unused_tensors(whole, stored)
    notes += (unused,) if unused else ()
    if (
        type(whole)._keys_to_ignore_on_load_missing
        and sum(file.stat().st_size for file in folder.glob("*.safetensors")) < CHEAP
    ):
        with _loading(folder, stored):
            options |= as_floats(said)
            again: Any = opener.from_pretrained(folder, **options)[0] if kind.inside is None else None
        if again is not None:
            if quantization is not None:
                _require_dequantized(str(folder), again, dtype)
            require_same(str(folder), model, again)
    return _plain(model), notes


@contextlib.contextmanager
def _loading(where: Path, stored: Mapping[str, StoredTensor] | None = None) -> Iterator[None]:
    """Turn errors of transformers into ours."""
    try:
        with quietly():
            yield
    except Exception as error:
        known = translate(error, str(where))
        if known is not None:
            raise known from None
        reason = first_line(error)
        if "Unrecognized" in reason or "not supported" in reason or "does not recognize" in reason:
            raise UnsupportedModel(
                f"{where}: {reason}", "Give a causal language model that transformers knows."
            ) from None
        odd = odd_tensor(stored or {})
        if odd:
            raise TeacherError(f"{where}: {odd}", "Get the whole model again.") from None
        raise TeacherError(
            f"{where}: the model cannot be loaded: {reason}", "Check that its files are complete."
        ) from None


def _plain(model: Any) -> CausalModel:
    """A model without traces of how it was stored."""
    # Quantized files leave that in the config although the weights are floats again; saving would refuse it.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.name_or_path = ""
    loaded: CausalModel = model
    return loaded


def _require_dequantized(where: str, model: Any, dtype: torch.dtype) -> None:
    """Have a model that was quantized computed in one dtype and saved as the floats it is, and refuse one that is not floats.

    transformers keeps how it read the files and does the reverse when the model is saved: the weights would be quantized
    again, all of them, without a word of it in the config. And the tensors that were not quantized stay as the file has them,
    whatever dtype was asked for: matrices in bfloat16 behind norms in float32 cannot be computed.

    Raises:
        UnsupportedModel: A tensor is not floats; names it.
    """
    import torch

    for module in model.modules():
        module.__dict__.pop("_weight_conversions", None)
        module.__dict__.pop("quantization_method", None)
        if "is_quantized" in module.__dict__:
            module.is_quantized = False
    for name, parameter in model.named_parameters():
        if parameter.dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            raise UnsupportedModel(
                f"{where}: transformers left the tensor {name} quantized ({str(parameter.dtype).removeprefix('torch.')}).",
                "Give the folder it was made from, or a GGUF file of it.",
            )
        if not any(part in name for part in getattr(model, "_keep_in_fp32_modules_strict", None) or ()):
            parameter.data = parameter.data.to(dtype)


def _card_licence(folder: Path) -> str | None:
    """The licence in the front matter of a model card; several, one after the other. What cannot be read states none here:
    the terms gate refuses such a card.
    """
    card = folder / "README.md"
    if not card.is_file():
        return None
    try:
        stated = licences_of(front_matter(card.read_text(encoding="utf-8", errors="replace"), str(card)))
    except RecipeError:
        return None
    return ", ".join(stated) or None


def _text(value: object) -> str | None:
    return str(value) if value else None
