"""Exported files: agreement with PyTorch, bytes against llama.cpp's own, the ladder of types, answers under a schema.

    python -m benchmarks.export [--quick] [--run runs/quickstart] --json build/export.json

For each family a tiny random model is written in every type, loaded by llama.cpp and compared position by position; so is
SmolLM2-135M-Instruct in F16 on Python's documentation. Quantised tensors are compared with those that llama.cpp's own
``llama_model_quantize`` makes of the same F32 file, byte by byte, where its library is found (``STILLROOM_LIBLLAMA``, or under
``.venvs/llama*``; :mod:`benchmarks.llama_reference` says how to get it). With ``--run``, the ladder of that run is measured.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import constrained, material, report
from stillroom.core import files
from stillroom.core.errors import Interrupted, StillroomError
from stillroom.core.gguf_types import GGUF_TYPES
from stillroom.core.progress import Progress, Task, say
from stillroom.formats.check import Passage, agreement, file_says, require_same_tokens, student_says
from stillroom.formats.exporter import SAMPLES
from stillroom.formats.gguf_file import Importance, write_gguf
from stillroom.models.load import load_student, save_model
from stillroom.models.quantization import file_type
from stillroom.runs.run import Run

REFERENCE = Path(__file__).with_name("llama_reference.py")


def compare(folder: Path, file: Path, texts: list[Passage]) -> dict[str, float]:
    """How a file compares with its PyTorch model on passages."""
    model, tokenizer = load_student(folder, torch.float32)
    used = model.config.vocab_size
    said = file_says(file, tokenizer, texts, used, Task("", 1, "", quiet=True))
    return vars(agreement(student_says(model.eval(), texts, used), said))


def families(scratch: Path, quick: bool) -> dict[str, Any]:
    """Every family: F16 against PyTorch, every type loaded, ONNX against PyTorch."""
    from stillroom.formats.onnx_check import export_onnx
    from tests.tiny_models import FAMILIES, WINDOWED, tiny_model

    ids = torch.randint(5, 500, (96,), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [Passage(ids, ids, list(range(len(ids))))]
    # Another text after it, far beyond Gemma's windows of 16, and with nothing in common.
    other = torch.randint(5, 500, (256,), generator=torch.Generator().manual_seed(1)).tolist()
    beyond = [*texts, Passage(other, other, list(range(len(other))))]
    found: dict[str, Any] = {}
    for family in FAMILIES:
        folder = tiny_model(family, scratch / family, layers=6 if family == "gemma3_text" else 4, hidden=256)
        entry: dict[str, Any] = {"gguf": {}}
        for kind in ("F16", "Q4_K_M") if quick else GGUF_TYPES:
            file = scratch / f"{family}-{kind}.gguf"
            # A name with "phi3" in it makes llama.cpp look for tokens of Phi 3, which the tiny tokenizer lacks.
            write_gguf(folder, file, kind, name="tiny", licence=None)
            entry["gguf"][kind] = compare(folder, file, beyond if family in WINDOWED and kind == "F16" else texts)
            file.unlink()
        if not quick or family in ("llama", "gemma3_text"):
            entry["onnx"] = export_onnx(folder, scratch / f"{family}-onnx", texts, 500, Progress(True))
        found[family] = entry
        say(f"{family}: F16 {entry['gguf']['F16']['kl']:.1e}")
    return found


def smollm2(scratch: Path, positions: int) -> tuple[Path, dict[str, Any]]:
    """SmolLM2 in F16 on Python's documentation; returns its folder too."""
    from pydoc_data.topics import topics

    loaded = material.teacher(torch.float32)
    folder = scratch / "smollm2"
    save_model(loaded.model, loaded.tokenizer, folder)
    texts = []
    for name in sorted(topics)[: positions // 64]:
        ids = loaded.tokenizer(topics[name], add_special_tokens=False)["input_ids"][:64]
        texts.append(Passage(ids, ids, list(range(len(ids)))))
    file = scratch / "smollm2.gguf"
    write_gguf(folder, file, "F16", name="SmolLM2", licence=None)
    require_same_tokens(loaded.tokenizer, file, list(SAMPLES))
    return folder, compare(folder, file, texts)


def reference_library() -> Path | None:
    """llama.cpp's shared library, where one is installed."""
    named = os.environ.get("STILLROOM_LIBLLAMA")
    if named:
        return Path(named)
    # One that was built here comes first: a wheel may need a newer system.
    found = sorted(Path(".venvs").glob("llama*/**/libllama.so"), key=lambda path: "site-packages" in path.parts)
    return found[0] if found else None


def same_bytes(folder: Path, scratch: Path, library: Path, left_out: dict[str, str]) -> dict[str, Any]:
    """Tensors equal to llama.cpp's own, by type, with and without an importance matrix.

    Args:
        folder: The model.
        scratch: Where files are written.
        library: llama.cpp's.
        left_out: Takes what the library said where it wrote no file of a type.
    """
    from gguf import GGUFReader, get_tensor_name_map
    from safetensors import safe_open
    from transformers import AutoConfig

    from stillroom.models.families.registry import gguf_layout_of

    config = AutoConfig.from_pretrained(folder)
    names = get_tensor_name_map(gguf_layout_of(config).model_arch, config.num_hidden_layers)
    generator = np.random.default_rng(0)
    importance: Importance = {}
    with safe_open(folder / "model.safetensors", framework="numpy") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            shape = tensors.get_slice(key).get_shape()
            if ".layers." in key and len(shape) == 2:
                importance[key] = generator.random(shape[1]).astype(np.float32)
    weights = scratch / "importance.npz"
    arrays: dict[str, Any] = {names.get_name(key, (".weight",)) or key: value for key, value in importance.items()}
    np.savez(weights, **arrays)
    exact = scratch / "exact.gguf"
    write_gguf(folder, exact, "F32", name="reference", licence=None)
    result: dict[str, Any] = {}
    for kind in tuple(GGUF_TYPES)[1:]:
        for weighted in (False, True) if GGUF_TYPES[kind].importance else (False,):
            mine, theirs = scratch / "mine.gguf", scratch / "theirs.gguf"
            write_gguf(folder, mine, kind, name="reference", licence=None, importance=importance if weighted else None)
            command = [sys.executable, str(REFERENCE), str(library), str(exact), str(theirs), str(int(file_type(kind)))]
            environment = os.environ | {"LD_LIBRARY_PATH": str(library.parent)}
            key = f"{kind}{' with importance' if weighted else ''}"
            done = subprocess.run(
                [*command, *([str(weights)] if weighted else [])], capture_output=True, text=True, env=environment
            )
            if done.returncode:
                left_out[f"same_bytes, {key}"] = done.stderr[-800:]
                continue
            ours = {entry.name: entry for entry in GGUFReader(mine).tensors}
            other = {entry.name: entry for entry in GGUFReader(theirs).tensors}
            equal = sum(
                ours[name].tensor_type == other[name].tensor_type and np.array_equal(ours[name].data, other[name].data)
                for name in ours.keys() & other.keys()
            )
            result[key] = {"tensors": len(ours.keys() | other.keys()), "equal": int(equal)}
            say(f"{key}: {equal} of {result[key]['tensors']} tensors equal")
    return result


def main() -> None:
    """Measure, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--constrained", type=Path, help="what benchmarks.constrained wrote; it is run without")
    arguments.add_argument("--run", type=Path, help="a finished run whose ladder is measured")
    options = arguments.parse_args()
    # A wrong file or folder is told before anything is measured.
    given: dict[str, int] | None = None
    if options.constrained is not None:
        written = files.read_json(options.constrained)["figures"]
        given = {name: written[f"constrained_{name}"] for name in ("valid", "total")}
    if options.run is not None:
        Run.open(options.run)
    left_out: dict[str, str] = {}
    details: dict[str, Any] = {"left_out": left_out}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        details["families"] = families(scratch, options.quick)
        folder, details["smollm2"] = smollm2(scratch, 128 if options.quick else 512)
        library = reference_library()
        details["same_bytes"] = None
        if library is not None:
            model = scratch / "llama" if options.quick else folder
            details["same_bytes"] = same_bytes(model, scratch, library, left_out)
        else:
            left_out["same_bytes"] = "llama.cpp's own library was not found"
    details["constrained"] = given or constrained.measure(60 if options.quick else 500)
    if options.run is not None:
        from stillroom.formats.ladder import ladder

        try:
            details["ladder"] = ladder(options.run, plain=True)
        except Interrupted:
            raise
        except StillroomError as error:
            left_out["ladder"] = str(error)
    every = [entry["gguf"]["F16"]["kl"] for entry in details["families"].values()]
    figures: dict[str, Any] = {
        "f16_max_mean_kl": max(*every, details["smollm2"]["kl"]),
        "families": len(every),
        "constrained_valid": details["constrained"]["valid"],
        "constrained_total": details["constrained"]["total"],
        "f16_median_mean_kl": statistics.median(every),
        "onnx_max_mean_kl": max(
            entry["onnx"]["kl_to_pytorch"] for entry in details["families"].values() if "onnx" in entry
        ),
    }
    if details["same_bytes"]:
        figures["tensors_equal_to_llama_cpp"] = sum(entry["equal"] for entry in details["same_bytes"].values())
        figures["tensors_compared"] = sum(entry["tensors"] for entry in details["same_bytes"].values())
    report.write(figures, details, options.json)


if __name__ == "__main__":
    main()
