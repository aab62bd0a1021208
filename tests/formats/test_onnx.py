"""ONNX with a cache: ONNX Runtime says and generates what PyTorch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

from stillroom.core import files
from stillroom.core.errors import ExportMismatch, MissingDependency
from stillroom.core.progress import Progress
from stillroom.formats import onnx_file
from stillroom.formats.check import Passage
from stillroom.formats.onnx_check import OnnxModel, check_onnx, export_onnx
from stillroom.inspection.inspect import require_safe
from stillroom.models.load import load_student

IDS = torch.randint(5, 400, (40,), generator=torch.Generator().manual_seed(0)).tolist()
TEXTS = [Passage(IDS, IDS, list(range(40)))]


def test_it_says_and_generates_what_pytorch_does(tmp_path: Path) -> None:
    # One layer sees a window of 16, the other everything. The benchmark does this in every family.
    folder = tiny_model("gemma2", tmp_path / "model", layers=2)
    found = export_onnx(folder, tmp_path / "onnx", TEXTS, 500, Progress(True))
    assert found["kl_to_pytorch"] < 1e-6
    require_safe(tmp_path / "onnx")  # what a package carries has to pass what its verification looks over
    assert found["files"] == {file.name: files.digest_file(file) for file in (tmp_path / "onnx").iterdir()}
    # The last passage may be a single token.
    assert check_onnx(folder, tmp_path / "onnx", [*TEXTS, Passage(IDS[:1], IDS[:1], [0])], 500)["positions"] == 41
    model, _ = load_student(folder, torch.float32)
    graph = OnnxModel(tmp_path / "onnx", 1)
    mine = model.eval().generate(
        torch.tensor([IDS[:30]]), max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 30:]
    assert graph.generate(IDS[:30], 20) == mine.tolist()
    # One token at a time gives what all at once gives.
    cache = graph.start()
    for index, token in enumerate(IDS):
        logits, cache = graph.step([token], cache)
        assert cache[0].shape[2] == index + 1
    whole, _ = graph.step(IDS, graph.start())
    assert torch.allclose(torch.from_numpy(logits[-1]), torch.from_numpy(whole[-1]), atol=1e-3)
    other = tiny_model("gemma2", tmp_path / "other", layers=2, seed=1)
    with pytest.raises(ExportMismatch, match="mean KL"):
        check_onnx(other, tmp_path / "onnx", TEXTS, 500)


def test_a_graph_that_is_refused_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillroom.formats import onnx_check

    def copied(_source: Path, target: Path) -> None:
        target.mkdir()
        (target / "model.onnx").write_bytes(b"")

    def refuse(*_: Any) -> dict[str, Any]:
        raise ExportMismatch("no")

    monkeypatch.setattr(onnx_check, "write_onnx", copied)
    monkeypatch.setattr(onnx_check, "check_onnx", refuse)
    with pytest.raises(ExportMismatch):
        export_onnx(tmp_path, tmp_path / "onnx", TEXTS, 500, Progress(True))
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "NEEDED", ("onnx", "no_such_package"))
    with pytest.raises(MissingDependency, match="no_such_package"):
        onnx_file.require_onnx()
