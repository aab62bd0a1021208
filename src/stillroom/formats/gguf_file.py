"""A Hugging Face folder to a GGUF file.

Legend: keys are a tensor's names in Hugging Face, names those in llama.cpp; C columns.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map

from stillroom.core import files
from stillroom.core.errors import UnsupportedModel
from stillroom.formats.quantise import quantise
from stillroom.formats.vocabulary import add_tokenizer
from stillroom.models.families.family import GgufLayout
from stillroom.models.families.gguf_keys import add_hyperparameters, applied, lay_out
from stillroom.models.families.registry import gguf_layout_of
from stillroom.models.quantization import Setting, file_type, tensor_bytes, tensor_type

if TYPE_CHECKING:
    import torch

    from stillroom.models.types import ModelConfig, Tokenizer

Array = np.ndarray
OUTPUTS = ("lm_head.weight", "embed_out.weight")
"""Keys of output matrices, which a file of a model with tied embeddings does not have."""
Importance = dict[str, Array]
"""What an error in each column of a matrix costs, [C] float32, by the matrix's key (:mod:`stillroom.formats.importance`)."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its source's key, its key by the family's rules, its name, its shape there and its type."""

    key: str
    stored: str
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
        rows: Ids that are real. What follows them pads the vocabulary and is left out, so that it is never said.
        importance: What an error in each column costs; used where a matrix is in it.

    Raises:
        UnsupportedModel: llama.cpp cannot run this family, layer order or tokenizer.
        MissingDependency: No library here can make this type.
    """
    from transformers import AutoConfig

    from stillroom.models.tokenizer import open_tokenizer, quietly

    with quietly():
        config: ModelConfig = AutoConfig.from_pretrained(folder, local_files_only=True)
    layout = _Layout.of(config, rows, kind, importance is not None)
    with files.replacing(target) as beside, contextlib.ExitStack() as stack:
        held = _held(folder) if layout.gguf.rules else stack.enter_context(_shards(folder))
        planned = {tensor.stored: tensor for tensor in layout.tensors(held)}
        writer = GGUFWriter(beside, layout.arch_name)
        stack.callback(writer.close)
        for extra, data in layout.describe(writer, open_tokenizer(folder), name, licence, held).items():
            writer.add_tensor(extra, data)
        for source, stored, values in applied(layout.gguf, layout.config, held):
            tensor = planned.get(stored)
            if tensor is None:
                continue
            data = lay_out(layout.gguf, layout.config, stored, values.float().contiguous().numpy())
            weight = importance.get(source) if importance else None
            if weight is not None and weight.shape != tensor.shape[-1:]:
                weight = None  # the columns are others now
            encoded = quantise(data[: tensor.shape[0]], tensor.kind, weight)
            writer.add_tensor(tensor.name, encoded, raw_dtype=tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


class _Stored(Mapping[str, "torch.Tensor"]):
    """The tensors of a folder's files by key, each read when it is asked for."""

    def __init__(self, shards: list[Any]) -> None:
        self._shards = {key: shard for shard in shards for key in shard.keys()}  # noqa: SIM118 - not a mapping

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor: torch.Tensor = self._shards[key].get_tensor(key)
        return tensor

    def shape(self, key: str) -> tuple[int, ...]:
        """A tensor's shape; its data is not read."""
        return tuple(self._shards[key].get_slice(key).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards)

    def __len__(self) -> int:
        return len(self._shards)


@contextlib.contextmanager
def _shards(folder: Path) -> Iterator[Mapping[str, torch.Tensor]]:
    """The tensors of a folder, as they are on disk."""
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        yield _Stored(
            [stack.enter_context(safe_open(shard, framework="pt")) for shard in sorted(folder.glob("*.safetensors"))]
        )


def _held(folder: Path) -> Mapping[str, torch.Tensor]:
    """The tensors of a folder, as the loaded model has them: with its buffers, and experts stacked."""
    from transformers import AutoModelForCausalLM

    from stillroom.models.tokenizer import quietly

    opener: Any = AutoModelForCausalLM
    with quietly():
        tensors: dict[str, torch.Tensor] = opener.from_pretrained(folder, local_files_only=True).state_dict()
    return tensors


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
    layout = _Layout.of(config, rows, kind, importance)
    held = model.state_dict() if layout.gguf.rules else dict(model.named_parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planned.gguf"
        writer = GGUFWriter(path, layout.arch_name)
        try:
            data = 0
            for extra, array in layout.describe(writer, tokenizer, name, licence, held).items():
                writer.add_tensor(extra, array)
                data += writer.ggml_pad(array.nbytes, writer.data_alignment)
            for tensor in layout.tensors(held):
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
    """The type that each tensor of a model gets in a file of a type, by its key; of those that are stored as they are."""
    import torch

    layout = _Layout.of(config, rows, kind, importance)
    held = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return {tensor.key: tensor.kind for tensor in layout.tensors(held) if tensor.key == tensor.stored}


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

    def describe(
        self,
        writer: GGUFWriter,
        tokenizer: Tokenizer,
        name: str,
        licence: str | None,
        held: Mapping[str, torch.Tensor],
    ) -> dict[str, Array]:
        """Write all metadata; returns the tensors that belong to it."""
        writer.add_name(name)
        if licence:
            writer.add_license(licence)
        writer.add_file_type(file_type(self.kind))
        writer.add_quantization_version(2)
        extra = add_hyperparameters(writer, self.gguf, self.config)
        if self.gguf.learned is not None:
            self.gguf.learned(writer, self.config, held)
        add_tokenizer(writer, tokenizer, self.config.vocab_size)
        return extra

    def tensors(self, held: Mapping[str, torch.Tensor]) -> Iterable[Tensor]:
        """Every tensor, from the model's by key; only their shapes count."""
        import torch

        config = self.config
        names = get_tensor_name_map(self.gguf.model_arch, config.num_hidden_layers)
        tied = bool(config.tie_word_embeddings)
        heads = getattr(config, "num_attention_heads", None) or 1
        groups = getattr(config, "num_key_value_heads", None) or heads
        setting = Setting(self.kind, config.num_hidden_layers, tied, heads // groups, self.importance)
        # Changes are computed on shapes alone.
        shapes = {key: torch.empty(_shape(held, key), device="meta") for key in held}
        for key, stored, tensor in applied(self.gguf, config, shapes):
            if key in OUTPUTS and tied:
                continue
            shape = tuple(tensor.shape)
            name = stored[1:] if stored.startswith("=") else names.get_name(stored, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise UnsupportedModel(
                    f"The tensor {stored} has no place in llama.cpp's `{self.arch_name}`.",
                    "Export nothing: `export: {gguf: []}`.",
                )
            if name.startswith(("token_embd.", "output.")) and shape[0] == self.padded:
                shape = (config.vocab_size, *shape[1:])
            yield Tensor(key, stored, name, shape, tensor_type(setting, name, shape))


def _shape(held: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...]:
    if isinstance(held, _Stored):
        return held.shape(key)
    return tuple(held[key].shape)


def _float_type(kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """A type under which the writer takes a shape in weights; a tensor's entry has the same size for every type."""
    return kind if kind == GGMLQuantizationType.F32 else GGMLQuantizationType.F16
