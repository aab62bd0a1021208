"""docs/contributing/quantization-type.md, followed to the letter: one row makes a type that everything takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from guide import ROOT, Guide
from tiny_models import tiny_model

TARGET_BYTES = 200_000

ASK = """
import json, sys
from pathlib import Path

import stillroom
from stillroom.core import files
from stillroom.core.errors import RecipeError
from stillroom.recipe.export import ExportConfig
from stillroom.recipe.reading import load_recipe, parse_recipe
from stillroom.runs.run import Run
from stillroom.runs.stages import inputs_of, stages_of

recipe = load_recipe(sys.argv[1])
try:
    parse_recipe(Path(sys.argv[1]).read_text().replace("Q5_0", "Q5_1"))
    refused = ""
except RecipeError as error:
    refused = str(error)
finished = Run(Path("run"), parse_recipe(Path("run/recipe.yaml").read_text()))
print(json.dumps({
    "package": stillroom.__file__,
    "target": recipe.student.target.quantisation,
    "limits": [sorted(config.max_kl) for config in (ExportConfig(), recipe.export)],
    "refused": refused,
    "default": files.digest_json(ExportConfig().model_dump(mode="json")),
    "inputs": {spec.name: inputs_of(finished, spec)["recipe"] for spec in stages_of(finished.recipe)},
}))
"""


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Guide:
    """A copy of the package with the row put where the page says; nothing else is touched."""
    found = Guide("quantization-type", tmp_path_factory.mktemp("guide"))
    assert found.follow() == ["src/stillroom/core/gguf_types.py"]
    (change,) = [block.text for block in found.blocks if block.language == "diff"]
    assert [line[0] for line in change.splitlines()[1:]].count("+") == 1, "one row"
    return found


@pytest.fixture(scope="module")
def recipe(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that names the type wherever one is named."""
    folder = tmp_path_factory.mktemp("work")
    tiny_model("llama", folder / "teacher", layers=4, hidden=96, tied=False)
    own = {"kind": "own", "decided_by": "Stillroom's tests", "decided_at": "2026-11-24T00:00:00Z"}
    settings: dict[str, Any] = {
        "name": "guide",
        "compute": {"device": "cpu", "threads": 1},
        "corpus": {
            "sources": [{"kind": "text", "path": str(text), "licence": "PSF-2.0"}],
            "sequence_length": 64,
            "train_tokens": 1024,
            "validation_tokens": 128,
            "heldout_tokens": 256,
        },
        "teacher": {"kind": "huggingface", "name": "./teacher"},
        "student": {
            "kind": "shrink",
            "target": {"file_bytes": TARGET_BYTES, "quantisation": "Q5_0", "axes": ["layers", "intermediate_size"]},
            "importance": {"tokens": 256},
        },
        "distill": {"batch_tokens": 256, "precision": "float32"},
        "baseline": False,
        "export": {"gguf": ["Q5_0"], "choose": {"file_bytes": TARGET_BYTES, "among": ["Q5_0"]}, "check_tokens": 64},
        "chat": {"prompt": None},
        "terms": {"decisions": [own | {"subject": "teacher"}, own | {"subject": "student"}]},
    }
    path = folder / "guide.yaml"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


def test_its_tests_pass(guide: Guide) -> None:
    said = guide.pytest("-k", "every_row or finest or (Q5_0 and (llama or phi3))")
    assert "Q5_0] PASSED" in said
    assert "FAILED" not in said


def test_recipes_take_it_and_earlier_runs_stay_as_they_were(guide: Guide, recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "fixtures" / "0.1.0", tmp_path / "release")
    found = json.loads(guide.python("-c", ASK, str(recipe), cwd=tmp_path / "release"))
    assert Path(found["package"]).is_relative_to(guide.folder)
    assert found["target"] == "Q5_0"
    assert "'Q5_K_M', 'Q5_0', 'Q4_K_M'" in found["refused"]
    assert ["Q5_0" in limits for limits in found["limits"]] == [False, True]

    from stillroom.core import files
    from stillroom.recipe.export import ExportConfig

    assert found["default"] == files.digest_json(ExportConfig().model_dump(mode="json"))
    for stage, digest in found["inputs"].items():
        record = json.loads((tmp_path / "release" / "run" / stage / "stage.json").read_text())
        assert record["inputs"]["recipe"] == digest, stage


@pytest.mark.longer
def test_solver_plan_and_exporter_take_it(guide: Guide, recipe: Path) -> None:
    plan = json.loads(guide.python("-m", "stillroom", "plan", "guide.yaml", "--json", cwd=recipe.parent))
    assert 0.5 * TARGET_BYTES < plan["file_bytes"]["Q5_0"] <= TARGET_BYTES
    guide.python("-m", "stillroom", "run", "guide.yaml", "--runs", "runs", "--quiet", cwd=recipe.parent)
    run = recipe.parent / "runs" / "guide"
    chosen = json.loads((run / "shrink" / "shrink.json").read_text())["planned"]
    assert chosen["limits"]["quantisation"] == "Q5_0"
    exported = json.loads((run / "export" / "export.json").read_text())["files"]
    (file,) = [entry for entry in exported if entry["type"] == "Q5_0"]
    counted = chosen["chosen"]["takes"]["file_bytes"]
    assert file["bytes"] == (run / file["path"]).stat().st_size <= counted <= TARGET_BYTES
    assert file["importance_tokens"] > 0
    assert file["kl_to_pytorch"] < 1.5e-1

    from gguf import GGMLQuantizationType, GGUFReader, LlamaFileType

    reader = GGUFReader(run / file["path"])
    types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert types["blk.0.attn_q.weight"] == GGMLQuantizationType.Q5_0
    # Q6_K in a row of 96 weights.
    assert types["output.weight"] == GGMLQuantizationType.Q8_0
    assert reader.fields["general.file_type"].contents() == LlamaFileType.MOSTLY_Q5_0
