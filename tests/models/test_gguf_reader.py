"""The quick reader of GGUF files gives what the package's gives, and ends where a file does."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from stillroom.formats.gguf_file import write_gguf
from stillroom.models.gguf_reader import QuickReader, read_quickly


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with every kind of field and one tensor."""
    path = tmp_path / "tiny.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("general.name", "naïve")
    writer.add_array("tokenizer.ggml.tokens", ["a", "", "é🙂", "word"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 2.0, 3.0])
    writer.add_array("tokenizer.ggml.token_type", [1, 2, 3, 4])
    writer.add_array("llama.flags", [True, False])
    writer.add_tensor("token_embd.weight", np.arange(12, dtype=np.float32).reshape(4, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_reads_what_the_package_reads(file: Path) -> None:
    mine, theirs = QuickReader(file), GGUFReader(file)
    assert list(mine.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        found = mine.fields[name]
        assert found.contents() == field.contents(), name
        assert (found.offset, found.data, found.types) == (field.offset, field.data, field.types), name
        assert [part.tobytes() for part in found.parts] == [part.tobytes() for part in field.parts], name
        assert [part.dtype for part in found.parts] == [part.dtype for part in field.parts], name
    assert [tensor.name for tensor in mine.tensors] == ["token_embd.weight"]
    assert np.array_equal(mine.tensors[0].data, theirs.tensors[0].data)


def test_transformers_reads_with_it_and_only_while_it_is_to(original: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    found: list[Path] = []

    class Counted(QuickReader):
        def __init__(self, path: Path) -> None:
            found.append(path)
            super().__init__(path)

    write_gguf(original, tmp_path / "tiny.gguf", "F32", name="tiny", licence="MIT")
    expected = AutoConfig.from_pretrained(tmp_path, gguf_file="tiny.gguf").to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillroom.models.gguf_reader.QuickReader", Counted)
        with read_quickly():
            assert AutoConfig.from_pretrained(tmp_path, gguf_file="tiny.gguf").to_dict() == expected
    assert found
    with pytest.raises(KeyError), read_quickly():
        raise KeyError
    assert gguf.GGUFReader is GGUFReader


def test_a_file_that_ends_early_is_an_error_at_every_length(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(24, GGUFReader(file).data_offset, 7):
        cut.write_bytes(whole[:length])
        with pytest.raises((IndexError, ValueError)):
            QuickReader(cut)
