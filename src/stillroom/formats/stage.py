"""The stage `export`: the student as files for devices, each checked before it is accepted."""

from __future__ import annotations

from typing import Any

from stillroom.core import files
from stillroom.core.progress import Progress
from stillroom.formats.exporter import Exporter
from stillroom.models.compute import prepare
from stillroom.runs.run import Run, Stage


def run_stage(run: Run, stage: Stage, progress: Progress) -> None:
    """Write and check every file that the recipe asks for; one that was accepted before is kept."""
    config = run.recipe.export
    prepare(run.recipe.compute, run.recipe.public_seed)
    exporter = Exporter(run, stage.path, progress)
    accepted = [exporter.make(kind) for kind in config.gguf]
    weights = sorted(exporter.source.glob("*.safetensors"))
    result: dict[str, Any] = {
        "files": accepted,
        "safetensors": {
            "path": exporter.source.relative_to(run.path).as_posix(),
            "bytes": sum(file.stat().st_size for file in weights),
        },
    }
    if config.choose is not None:
        chosen, tried = exporter.choose(config.choose)
        result["chosen"] = {"type": chosen["type"], "tried": tried}
        if chosen["type"] not in config.gguf:
            accepted.append(chosen)
    if config.onnx:
        from stillroom.formats.onnx_check import export_onnx

        found = export_onnx(exporter.source, stage.path / "onnx", exporter.texts, exporter.used, progress)
        result["onnx"] = {"path": (stage.path / "onnx").relative_to(run.path).as_posix(), **found}
    files.write_json(stage.path / "export.json", result)
