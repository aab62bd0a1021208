"""A Hugging Face folder to a GGUF file.

Legend: keys are a tensor's names in Hugging Face, names those in llama.cpp; C columns.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map

from stillroom.core import files
from stillroom.core.errors import UnsupportedModel
from stillroom.formats.quantise import quantise
from stillroom.formats.vocabulary import add_tokenizer
from stillroom.models.families.family import GgufLayout
from stillroom.models.families.gguf_keys import add_hyperparameters, lay_out
from stillroom.models.families.registry import gguf_layout_of
from stillroom.models.quantization import Setting, file_type, tensor_bytes, tensor_type

if TYPE_CHECKING:
    from stillroom.models.types import ModelConfig, Tokenizer

Array = np.ndarray
Importance = dict[str, Array]
"""What an error in each column of a matrix costs, [C] float32, by the matrix's key (:mod:`stillroom.formats.importance`)."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its key, its name, its shape there and its type."""

    key: str
    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def bytes(self) -> int:
        """Bytes of its data."""
        return tensor_bytes(self.shape, self.kind)


def write_gguf(
    folder: Path,
    target: Path,
    kind: str,
    *,
    name: str,
    licence: str | None,
    rows: int | None = None,
    importance: Importance | None = None,
) -> None:
    """Write a GGUF file, atomically.

    Args:
        folder: A Hugging Face folder: config, safetensors, tokenizer.
        target: The file.
        kind: One of :data:`~stillroom.core.gguf_types.GGUF_TYPES`; :mod:`~stillroom.models.quantization` says which
            tensor gets which type.
        name: Name of the model, for the file's metadata.
        licence: Its licence, for the file's metadata.
        rows: Ids that are real. What lies behind them pads the vocabulary and is left out, so that it is never said.
        importance: What an error in each column costs; used where a matrix is in it.

    Raises:
        UnsupportedModel: llama.cpp cannot run this family, layer order or tokenizer.
        MissingDependency: No library here can make this type.
    """
    from safetensors import safe_open
    from transformers import AutoConfig

    from stillroom.models.tokenizer import open_tokenizer, quietly

    with quietly():
        config: ModelConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    shards = sorted(folder.glob("*.safetensors"))
    shapes: dict[str, tuple[int, ...]] = {}
    for shard in shards:
        with safe_open(shard, framework="pt") as tensors:
            shapes |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    layout = _Layout.of(config, rows, kind, importance is not None)
    planned = {tensor.key: tensor for tensor in layout.tensors(shapes)}
    with files.replacing(target) as beside:
        writer = GGUFWriter(beside, layout.arch_name)
        try:
            for extra, data in layout.describe(writer, open_tokenizer(folder), name, licence).items():
                writer.add_tensor(extra, data)
            for shard in shards:
                with safe_open(shard, framework="pt") as tensors:
                    for key in sorted(planned.keys() & tensors.keys()):
                        tensor = planned[key]
                        data = lay_out(layout.gguf, layout.config, key, tensors.get_tensor(key).float().numpy())
                        weight = importance.get(key) if importance else None
                        encoded = quantise(data[: tensor.shape[0]], tensor.kind, weight)
                        writer.add_tensor(tensor.name, encoded, raw_dtype=tensor.kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def planned_bytes(
    config: ModelConfig,
    tokenizer: Tokenizer,
    kind: str,
    *,
    name: str,
    licence: str | None,
    rows: int | None = None,
    importance: bool = True,
) -> int:
    """Bytes of the file that :func:`write_gguf` would write, exactly; no weights are needed.

    Args:
        config: The model's config.
        tokenizer: Its tokenizer.
        kind: The file's type.
        name: Name of the model.
        licence: Its licence.
        rows: Ids that are real.
        importance: Whether it will be written with an importance matrix.

    Raises:
        UnsupportedModel: As in :func:`write_gguf`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    layout = _Layout.of(config, rows, kind, importance)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planned.gguf"
        writer = GGUFWriter(path, layout.arch_name)
        try:
            data = 0
            for extra, array in layout.describe(writer, tokenizer, name, licence).items():
                writer.add_tensor(extra, array)
                data += writer.ggml_pad(array.nbytes, writer.data_alignment)
            for tensor in layout.tensors(shapes):
                encoded = np.dtype(np.float32 if tensor.kind == GGMLQuantizationType.F32 else np.float16)
                writer.add_tensor_info(tensor.name, tensor.shape, encoded, tensor.bytes, _float_type(tensor.kind))
                data += writer.ggml_pad(tensor.bytes, writer.data_alignment)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.flush()
            return int(writer.ggml_pad(path.stat().st_size, writer.data_alignment)) + data
        finally:
            writer.close()


def tensor_types(
    config: ModelConfig,
    shapes: dict[str, tuple[int, ...]],
    kind: str,
    *,
    rows: int | None = None,
    importance: bool = True,
) -> dict[str, GGMLQuantizationType]:
    """The type that each tensor of a model gets in a file of a type, by its key."""
    layout = _Layout.of(config, rows, kind, importance)
    return {tensor.key: tensor.kind for tensor in layout.tensors(shapes)}


@dataclass(frozen=True)
class _Layout:
    """What a file of a type holds for a config."""

    gguf: GgufLayout
    config: ModelConfig
    kind: str
    importance: bool
    padded: int

    @classmethod
    def of(cls, config: ModelConfig, rows: int | None, kind: str, importance: bool) -> _Layout:
        gguf = gguf_layout_of(config)
        config = copy.deepcopy(config)
        padded = config.vocab_size
        config.vocab_size = min(rows or padded, padded)
        return cls(gguf, config, kind, importance, padded)

    @property
    def arch_name(self) -> str:
        return self.gguf.arch

    def describe(self, writer: GGUFWriter, tokenizer: Tokenizer, name: str, licence: str | None) -> dict[str, Array]:
        """Write all metadata; returns the tensors that belong to it."""
        writer.add_name(name)
        if licence:
            writer.add_license(licence)
        writer.add_file_type(file_type(self.kind))
        writer.add_quantization_version(2)
        extra = add_hyperparameters(writer, self.gguf, self.config)
        add_tokenizer(writer, tokenizer, self.config.vocab_size)
        return extra

    def tensors(self, shapes: dict[str, tuple[int, ...]]) -> Iterable[Tensor]:
        """Every tensor, from the shapes by key."""
        config = self.config
        names = get_tensor_name_map(self.gguf.model_arch, config.num_hidden_layers)
        tied = bool(config.tie_word_embeddings)
        groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        setting = Setting(
            self.kind, config.num_hidden_layers, tied, config.num_attention_heads // groups, self.importance
        )
        for key, shape in sorted(shapes.items()):
            if key == "lm_head.weight" and tied:
                continue
            name = names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise UnsupportedModel(
                    f"The tensor {key} has no place in llama.cpp's `{self.arch_name}`.",
                    "Export nothing: `export: {gguf: []}`.",
                )
            if name.startswith(("token_embd.", "output.")) and shape[0] == self.padded:
                shape = (config.vocab_size, *shape[1:])
            yield Tensor(key, name, shape, tensor_type(setting, name, shape))


def _float_type(kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """A type under which the writer takes a shape in weights; a tensor's entry has the same size for every type."""
    return kind if kind == GGMLQuantizationType.F32 else GGMLQuantizationType.F16
