"""What is looked over passes when it is ordinary and is refused with reason and offset when it is not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import FAMILIES, tiny_model

from attacks import _model
from attacks.run import all_attacks
from stillroom.core.errors import InspectionRefused, StillroomError
from stillroom.core.strict_json import parse_json
from stillroom.inspection import gguf_header, onnx_graph, safetensors_header
from stillroom.inspection.inspect import report, require_safe
from stillroom.inspection.pickles import betrayed
from stillroom.models.load import model_folder

ATTACKS = {
    name: attack
    for name, attack in all_attacks().items()
    if name.startswith(("imports/", "terms/")) or name in ("templates/two_that_differ", "templates/in_named_list")
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_with_their_own_message(name: str) -> None:
    outcome = ATTACKS[name].run()
    assert outcome.refused, outcome.words


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_passes(family: str, tmp_path: Path) -> None:
    found = report(tiny_model(family, tmp_path / family, layers=2))
    assert found["safe"], found["refused"]
    assert any(entry["name"] == "model.safetensors" for entry in found["files"])


def test_what_people_keep_beside_a_model_passes(tmp_path: Path) -> None:
    place = _model.model(tmp_path, LICENSE="MIT License", NOTICE="x", USE_POLICY__md="x", logo__png=b"\x89PNG\r\n")
    (place / ".gitattributes").write_text("*.safetensors filter=lfs")
    (place / ".cache" / "huggingface" / "download").mkdir(parents=True)
    (place / ".cache" / "huggingface" / "download" / "config.json.metadata").write_text("x")
    (place / "onnx").mkdir()
    (place / "onnx" / "config.json").write_text("{}")
    require_safe(place)


def test_a_snapshot_of_the_hub_passes(tmp_path: Path) -> None:
    snapshots = tmp_path / "models--owner--name" / "snapshots"
    place = _model.model(snapshots).rename(snapshots / "0123abcd")
    blobs = snapshots.parent / "blobs"
    blobs.mkdir()
    (place / "config.json").rename(blobs / "1")
    (place / "config.json").symlink_to(Path("../../blobs/1"))
    require_safe(place)
    assert model_folder(str(place), None) == place


def test_a_report_names_every_finding_with_its_offset(tmp_path: Path) -> None:
    place = _model.model(tmp_path, modeling__py="x", weights__bin=pickle.dumps([1]), config__json=b'{"a":1, "a":2}')
    (place / "model.safetensors").write_bytes(_model.safetensors() + b"more")
    found = report(place)
    assert not found["safe"]
    by_file = {entry["file"]: entry for entry in found["refused"]}
    assert by_file.keys() == {"config.json", "model.safetensors", "modeling.py", "weights.bin"}
    assert by_file["config.json"]["offset"] == 8
    assert by_file["model.safetensors"]["offset"] == len(_model.safetensors())
    assert "own code" in by_file["modeling.py"]["reason"]
    assert json.dumps(found)
    with pytest.raises(InspectionRefused, match="no such file"):
        report(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InspectionRefused, match="empty folder"):
        report(tmp_path / "empty")


def test_torch_files_are_pickles_whatever_they_are_called(tmp_path: Path) -> None:
    for name in ("a.bin", "a.json", "a.model", "a.safetensors", "a.gguf", "a.txt"):
        for new in (True, False):
            folder = tmp_path / f"{name}{new}"
            folder.mkdir()
            torch.save({"a": torch.ones(2)}, folder / name, _use_new_zipfile_serialization=new)
            with pytest.raises(InspectionRefused, match="pickle"):
                require_safe(folder)


@given(
    st.recursive(st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=8),
    st.integers(2, 5),
)
def test_every_pickle_with_a_magic_is_found(value: object, protocol: int) -> None:
    from stillroom.inspection.pickles import is_pickle

    assert is_pickle(pickle.dumps(value, protocol=protocol))


@given(st.text(max_size=300))
def test_plain_text_is_no_pickle(tmp_path_factory: pytest.TempPathFactory, words: str) -> None:
    path = tmp_path_factory.getbasetemp() / "words.txt"
    path.write_text("# " + words, encoding="utf-8", errors="replace")
    assert betrayed(path) is None


def test_block_sizes_are_those_of_the_format() -> None:
    assert {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()} == gguf_header.BLOCKS


def test_headers_are_read_as_the_common_libraries_read_them(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from safetensors import safe_open

    (tmp_path / "a.gguf").write_bytes(_model.gguf())
    theirs, mine = GGUFReader(tmp_path / "a.gguf"), gguf_header.read_gguf(tmp_path / "a.gguf")
    assert {tensor.name for tensor in theirs.tensors} == mine.tensors.keys()
    assert mine.data_offset == theirs.data_offset
    assert theirs.fields["general.license"].contents() == mine.metadata["general.license"]
    (tmp_path / "a.safetensors").write_bytes(_model.safetensors())
    with safe_open(tmp_path / "a.safetensors", "pt") as stream:
        assert set(stream.keys()) == safetensors_header.read_safetensors(tmp_path / "a.safetensors").tensors.keys()


@given(st.binary(max_size=400))
def test_any_bytes_give_a_header_or_a_refusal(data: bytes) -> None:
    for parse in (gguf_header.parse_bytes, safetensors_header.parse_bytes, onnx_graph.parse_bytes):
        for start in (b"", b"GGUF\x03\0\0\0", len(data).to_bytes(8, "little") + b"{"):
            try:
                parse(start + data)
            except StillroomError:
                continue


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.lists(st.text(max_size=3), max_size=3), max_size=4))
def test_json_without_duplicates_is_read_as_it_is(value: dict[str, object]) -> None:
    assert parse_json(json.dumps(value).encode(), "x") == value


def test_fuzzing_finds_nothing_in_short() -> None:
    from benchmarks.fuzz import fuzz

    found = fuzz(700, seed=1)
    assert found["inputs"] == 700
    assert found["escapes"] == 0, found
    for result in found["parsers"].values():
        assert result["accepted"] > 0
        assert result["refused"] > 0


def test_an_onnx_graph_passes_with_its_weights_beside_it(tmp_path: Path) -> None:
    for name in ("model.onnx.data", "model.onnx_data"):
        place = _model.model(tmp_path / name, model__onnx=_model.onnx(name))
        (place / name).write_bytes(bytes(16))
        assert report(place)["safe"], report(place)
        (place / name).write_bytes(bytes(15))
        (refused,) = report(place)["refused"]
        assert refused["file"] == "model.onnx"
        assert "goes past the end" in refused["reason"]
        assert refused["offset"] is not None
        (place / name).unlink()
        with pytest.raises(InspectionRefused, match="not beside it"):
            require_safe(place)


def test_tensors_are_found_however_deep_they_lie(tmp_path: Path) -> None:
    tensor = _model.proto(13, _model.proto(1, "location") + _model.proto(2, "../secret"))
    attribute = _model.proto(5, _model.proto(6, _model.proto(1, _model.proto(5, _model.proto(5, tensor)))))
    ways = {
        "initializer": _model.proto(7, _model.proto(5, tensor)),
        "sparse": _model.proto(7, _model.proto(15, _model.proto(1, tensor))),
        "subgraph": _model.proto(7, _model.proto(1, attribute)),
        "function": _model.proto(7, b"") + _model.proto(25, _model.proto(7, _model.proto(5, _model.proto(10, tensor)))),
        "training": _model.proto(7, b"") + _model.proto(20, _model.proto(1, _model.proto(5, tensor))),
    }
    for way, graph in ways.items():
        place = _model.model(tmp_path / way, model__onnx=_model.proto(1, 10) + graph)
        with pytest.raises(InspectionRefused, match="no plain name beside it"):
            require_safe(place)


def test_onnx_says_the_same_of_our_graphs(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
    (tmp_path / "model.onnx").write_bytes(_model.onnx())
    (tmp_path / "model.onnx.data").write_bytes(bytes(16))
    (tensor,) = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert onnx.numpy_helper.to_array(tensor).tolist() == [0.0] * 4
    onnx_graph.read_onnx(tmp_path / "model.onnx")
