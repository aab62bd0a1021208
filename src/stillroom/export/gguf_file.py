"""A Hugging Face folder to a GGUF file. Knows nothing of where the model came from.

Legend: names are those of Hugging Face on the left and of llama.cpp on the right of the `gguf` library's map.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, get_tensor_name_map
from gguf.quants import quantize

from stillroom import files
from stillroom.errors import UnsupportedModel
from stillroom.export.families import add_hyperparameters, family_of, lay_out
from stillroom.export.vocabulary import add_tokenizer

TYPES = {
    "F32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "F16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "Q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
Q8_BLOCK = 32


def write_gguf(
    folder: Path, target: Path, kind: str, *, name: str, licence: str | None, rows: int | None = None
) -> None:
    """Write a GGUF file, atomically.

    Args:
        folder: A Hugging Face folder: config, safetensors, tokenizer.
        target: The file.
        kind: One of :data:`TYPES`. Vectors stay in float32, as llama.cpp wants them.
        name: Name of the model, for the file's metadata.
        licence: Its licence, for the file's metadata.
        rows: Ids that are real. What lies behind them pads the vocabulary and is left out, so that it is never said.

    Raises:
        UnsupportedModel: llama.cpp cannot run this family, layer order or tokenizer.
    """
    from safetensors import safe_open
    from transformers import AutoConfig

    from stillroom.teacher.load import open_tokenizer, quietly

    with quietly():
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    family = family_of(config)
    padded = config.vocab_size
    config.vocab_size = min(rows or padded, padded)
    names = get_tensor_name_map(family.arch, config.num_hidden_layers)
    wanted, file_type = TYPES[kind]
    with files.replacing(target) as beside:
        writer = GGUFWriter(beside, _arch_name(family.arch))
        try:
            writer.add_name(name)
            if licence:
                writer.add_license(licence)
            writer.add_file_type(file_type)
            writer.add_quantization_version(2)
            add_hyperparameters(writer, family, config)
            add_tokenizer(writer, open_tokenizer(folder), config.vocab_size)
            for file in sorted(folder.glob("*.safetensors")):
                with safe_open(file, framework="pt") as tensors:
                    for key in sorted(tensors.keys()):
                        if key == "lm_head.weight" and config.tie_word_embeddings:
                            continue
                        new = names.get_name(key, try_suffixes=(".weight", ".bias"))
                        if new is None:
                            raise UnsupportedModel(
                                f"The tensor {key} has no place in llama.cpp's `{_arch_name(family.arch)}`.",
                                "Export nothing: `export: {gguf: []}`.",
                            )
                        data = lay_out(family, config, key, tensors.get_tensor(key).float().numpy())
                        if new.startswith(("token_embd.", "output.")) and data.shape[0] == padded:
                            data = data[: config.vocab_size]
                        _add(writer, new, data, wanted)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()


def _add(writer: GGUFWriter, name: str, data: np.ndarray, wanted: GGMLQuantizationType) -> None:
    if data.ndim < 2:
        wanted = GGMLQuantizationType.F32
    elif wanted == GGMLQuantizationType.Q8_0 and data.shape[-1] % Q8_BLOCK:
        wanted = GGMLQuantizationType.F16
    writer.add_tensor(name, quantize(np.ascontiguousarray(data), wanted), raw_dtype=wanted)


def _arch_name(arch: Any) -> str:
    from gguf import MODEL_ARCH_NAMES

    return str(MODEL_ARCH_NAMES[arch])
