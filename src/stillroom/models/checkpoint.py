"""The weights of a Hugging Face folder, and whether a model holds all of them and nothing else.

transformers fills what a file lacks with random numbers, leaves out what it does not know, and only warns. Here each is an
error that names the tensor, the file, and what to do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core.errors import TeacherError
from stillroom.core.strict_json import parse_json
from stillroom.inspection.safetensors_header import read_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillroom.models.types import CausalModel

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
_WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.", "student.", "teacher.")
"""What wrappers of training put before every name."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_SHOWN = 3
"""Names that a message shows."""


def weight_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """The files that hold a folder's weights, checked against each other by their headers.

    Args:
        folder: A Hugging Face folder.
        config: Its ``config.json``.

    Raises:
        TeacherError: A file is missing or superfluous, or a tensor is in two files or in another one than the index says.
    """
    named = config.get("transformers_weights")
    single, index = folder / (str(named) if named else SINGLE), folder / INDEX
    if named and not single.is_file():
        raise TeacherError(
            f"{folder}: the file {named}, which config.json names, is missing.", "Get the whole model again."
        )
    if single.is_file() and index.is_file() and not named:
        raise TeacherError(
            f"{folder}: it holds {SINGLE} and {INDEX}, two versions of its weights.",
            "Remove the one that is not meant.",
        )
    shards = sorted(path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name))
    if single.is_file():
        if shards and not named:
            raise TeacherError(
                f"{folder}: beside {SINGLE} there are parts of another version ({_some(shards)}).",
                "Remove the ones that are not meant.",
            )
        return [single]
    if not index.is_file():
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        if shards:
            raise TeacherError(
                f"{folder}: the model cannot be loaded: its weights are in parts ({_some(shards)}), and {INDEX} is missing.",
                "Get the whole model again.",
            )
        raise TeacherError(
            f"{folder}: the model cannot be loaded: there is no {SINGLE}"
            + (f", only {_some(others)}." if others else "."),
            "Get its weights as safetensors" + (f", or rename the file to {SINGLE}." if len(others) == 1 else "."),
        )
    return _indexed(folder, index, shards)


def _indexed(folder: Path, index: Path, shards: list[str]) -> list[Path]:
    """The files of an index, after comparing it with what they hold."""
    listed = parse_json(index.read_bytes(), str(index))
    if "metadata" not in listed:
        raise TeacherError(
            f"{folder}: {INDEX} has no `metadata`, which transformers needs.", "Get the whole model again."
        )
    where: dict[str, str] = listed["weight_map"]
    files = sorted(set(where.values()))
    spare = sorted(set(shards) - set(files))
    if spare:
        raise TeacherError(
            f"{folder}: {_some(spare)} holds weights that {INDEX} does not name.",
            "Get the whole model again, or remove what is not part of it.",
        )
    counts = {match.group(2) for name in files if (match := _SHARD.fullmatch(name))}
    numbers = {int(match.group(1)) for name in files if (match := _SHARD.fullmatch(name))}
    if len(counts) == 1 and numbers != (wanted := set(range(1, int(next(iter(counts))) + 1))):
        raise TeacherError(
            f"{folder}: part {min(wanted - numbers | numbers - wanted)} of {next(iter(counts))} is missing from {INDEX}.",
            "Get the whole model again.",
        )
    seen: dict[str, str] = {}
    for name in files:
        for tensor in read_safetensors(folder / name).tensors:
            if tensor in seen:
                raise TeacherError(
                    f"{folder}: the tensor {tensor} is in two files, {seen[tensor]} and {name}.",
                    "Get the whole model again.",
                )
            seen[tensor] = name
    for tensor, name in where.items():
        if seen.get(tensor) != name:
            found = f"it is in {seen[tensor]}" if tensor in seen else "no file holds it"
            raise TeacherError(
                f"{folder}: {INDEX} says that {name} holds the tensor {tensor}, and {found}.",
                "Get the whole model again.",
            )
    unnamed = sorted(set(seen) - set(where))
    if unnamed:
        raise TeacherError(
            f"{folder}: {seen[unnamed[0]]} holds the tensor {unnamed[0]}, which {INDEX} does not name.",
            "Get the whole model again.",
        )
    return [folder / name for name in files]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a file's header describes it."""

    dtype: str
    shape: tuple[int, ...]
    file: str


def stored_tensors(weights: Iterable[Path]) -> dict[str, StoredTensor]:
    """Every tensor of some safetensors files, by its name."""
    return {
        name: StoredTensor(dtype, shape, file.name)
        for file in weights
        for name, (dtype, shape) in read_safetensors(file).tensors.items()
    }


def odd_tensor(stored: Mapping[str, StoredTensor]) -> str:
    """What is odd among tensors whose names differ in their numbers only; empty where nothing is.

    transformers joins such tensors (the experts of a layer) and says only that it could not.
    """
    groups: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        groups.setdefault(re.sub(r"\d+", "*", name), {})[name] = tensor
    for group in groups.values():
        shapes = Counter(tensor.shape for tensor in group.values()).most_common()
        if len(shapes) > 1:
            name = next(name for name, tensor in group.items() if tensor.shape == shapes[-1][0])
            return f"the tensor {name} is {_shape(shapes[-1][0])}, and its likes are {_shape(shapes[0][0])}."
    sizes = Counter(len(group) for pattern, group in groups.items() if pattern.count("*") > 1).most_common()
    for pattern, group in groups.items():
        if pattern.count("*") > 1 and len(group) != sizes[0][0]:
            return f"there are {len(group)} tensors named {pattern}, and {sizes[0][0]} of others like it."
    return ""


def require_whole(where: str, info: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> None:
    """Refuse a model that does not hold exactly what its files hold.

    Args:
        where: The folder or file, as messages name it.
        info: transformers' account of loading it.
        stored: What the files hold.

    Raises:
        TeacherError: A tensor is missing, superfluous, or of another shape, by name.
    """
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(info["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        raise TeacherError(
            f"{where}: the tensor {name} is {_shape(found)}, and the config makes it {_shape(wanted)}"
            + (f" (so are {len(mismatched) - 1} more)." if len(mismatched) > 1 else "."),
            "Get config.json and the weights of the same version.",
        )
    errors = [*info.get("error_msgs", ()), *dict(info.get("conversion_errors") or {}).values()]
    if errors:
        what = odd_tensor(stored) or _first(errors[0])
        raise TeacherError(f"{where}: its tensors do not fit its config: {what}", "Get the whole model again.")
    prefix = _wrapper(unexpected) if missing else None
    if prefix:
        raise TeacherError(
            f"{where}: every tensor's name begins with `{prefix}`, so none is where the model looks for it.",
            "Save the model itself instead of its wrapper, or rename the tensors.",
        )
    if missing:
        held = f" The files hold {_some(unexpected)} instead." if unexpected else ""
        raise TeacherError(
            f"{where}: {_tensors(missing)} missing; random numbers would be there.{held}",
            "Get the whole model again.",
        )
    if unexpected:
        raise TeacherError(
            f"{where}: {_tensors(unexpected)} in the files, and the model that config.json describes has no place for "
            f"{'it' if len(unexpected) == 1 else 'them'}.",
            "Get config.json and the weights of the same version.",
        )


def unused_tensors(model: Any, stored: Mapping[str, StoredTensor]) -> str:
    """What is to be said of tensors that transformers leaves out because the family's class does not use them (layers that
    predict several tokens at once, masks of old versions); empty where there are none.
    """
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    names = sorted(name for name in stored if any(re.search(pattern, name) for pattern in patterns))
    held = model.state_dict()
    names = [name for name in names if name not in held]
    return f"transformers' class of the family does not use {_some(names)}" if names else ""


def require_stored(where: str, model: Any, stored: Mapping[str, StoredTensor], *, quantized: bool) -> None:
    """Refuse tensors that are stored as something else than the model takes them for, or twice.

    Raises:
        TeacherError: Names the tensor.
    """
    prefix = f"{model.base_model_prefix}."
    for name in stored:
        if name.startswith(prefix) and name.removeprefix(prefix) in stored:
            raise TeacherError(
                f"{where}: {name} and {name.removeprefix(prefix)} are the same tensor, held twice.",
                "Remove the one that is not meant.",
            )
    if quantized:
        return
    takes = {name: tensor.is_floating_point() for name, tensor in model.state_dict().items()}
    for name, tensor in stored.items():
        if tensor.dtype in _FLOATS:
            continue
        # Tensors that are joined when they are read (experts) have no name in the model; masks and the like no `weight`.
        if takes.get(name, takes.get(prefix + name, name.endswith("weight"))):
            raise TeacherError(
                f"{where}: the tensor {name} is stored as {tensor.dtype}, and config.json does not say how to turn that into "
                "weights (`quantization_config`).",
                "Get the model in float32, float16 or bfloat16.",
            )


def require_tied(where: str, model: CausalModel) -> None:
    """Refuse a model whose config ties what its files hold apart.

    Raises:
        TeacherError: Its output matrix is not its embedding.
    """
    layer: Any = model.get_output_embeddings()
    tied = getattr(model.config, "tie_word_embeddings", False) and layer is not None
    embedding = model.get_input_embeddings()
    if tied and layer.weight is not embedding.weight and layer.weight.shape == embedding.weight.shape:
        raise TeacherError(
            f"{where}: the config says `tie_word_embeddings: true`, and the files hold an output matrix that differs from the "
            "embedding.",
            "Set `tie_word_embeddings: false` in config.json if the output matrix is meant.",
        )


def require_rows(where: str, model: CausalModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer with ids that the model has no rows for.

    Raises:
        TeacherError: Names the first such token.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab()
    beyond = sorted((index, token) for token, index in vocabulary.items() if index >= rows)
    if beyond:
        index, token = beyond[0]
        raise TeacherError(
            f"{where}: its tokenizer has {len(vocabulary):,} ids and its embedding {rows:,} rows: {token!r} ({index:,}) has "
            "none" + (f", nor have {len(beyond) - 1:,} more." if len(beyond) > 1 else "."),
            "Resize the model's embedding, or take the added tokens out of the tokenizer.",
        )


def require_numbers(where: str, model: CausalModel) -> None:
    """Refuse weights that are not finite numbers.

    Raises:
        TeacherError: Names the tensor.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.device.type == "meta":
            continue
        # The sum is not finite where a number is not, or where finite ones overflow: only then each is looked at.
        if not bool(torch.isfinite(tensor.float().sum())) and not bool(torch.isfinite(tensor).all()):
            count = int((~torch.isfinite(tensor)).sum())
            raise TeacherError(
                f"{where}: the tensor {name} holds {count:,} of {tensor.numel():,} numbers that are not finite (NaN or Inf).",
                "Get the file again; if its maker's is the same, use another version of the model.",
            )


def require_same(where: str, one: CausalModel, other: CausalModel) -> None:
    """Refuse a model of which two loads differ: something in it is drawn at random.

    Raises:
        TeacherError: Names the tensor.
    """
    for (name, first), (_, second) in zip(_everything(one), _everything(other), strict=True):
        if not torch.equal(first, second):
            raise TeacherError(
                f"{where}: {name} is another one each time that the model is loaded: the files do not hold it.",
                "Get the whole model again.",
            )


def _everything(model: CausalModel) -> Iterable[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _wrapper(names: list[str]) -> str | None:
    """What is before all of some names, if it is what a wrapper puts there."""
    return next((prefix for prefix in _WRAPPERS if names and all(name.startswith(prefix) for name in names)), None)


def _tensors(names: list[str]) -> str:
    return f"the tensor {names[0]} is" if len(names) == 1 else f"{len(names):,} tensors ({_some(names)}) are"


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(str(size) for size in shape) or "a number"


def _first(text: object) -> str:
    lines = str(text).strip().splitlines() or ["no reason is given"]
    return f"{lines[-1].rstrip('.')[:200]}."
