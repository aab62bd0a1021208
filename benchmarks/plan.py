"""The plan against what then happened, over eight varied small recipes.

    .venv/bin/python -m benchmarks.plan [--quick] [--json FILE]

For each recipe: plan it, run it in a process of its own, compare. Parameters and file bytes have to be the same; of cache
bytes, peak memory and time the largest relative errors are the figures. `--quick` takes the four shortest.

Teachers are SmolLM2-135M-Instruct and random models of other families with its tokenizer, written to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.budget import end_group
from benchmarks.material import TEACHER
from benchmarks.report import write
from stillroom.core.files import read_json
from stillroom.models.load import load_tokenizer

OWN = {"subject": "teacher", "kind": "own", "decided_by": "benchmarks.plan", "decided_at": "2026-11-24T00:00:00Z"}
"""Random weights are the benchmark's own."""


def random_teacher(folder: Path, family: str, **sizes: int) -> Path:
    """A random model of a family with SmolLM2's tokenizer, in a folder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = load_tokenizer(TEACHER)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        **sizes,
    )
    target = folder / family
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """Eight recipes; the shorter ones first."""
    llama = random_teacher(
        folder,
        "llama",
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )
    qwen = random_teacher(
        folder,
        "qwen3",
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
    )
    gemma = random_teacher(
        folder,
        "gemma2",
        query_pre_attn_scalar=64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    )

    def recipe(teacher: Path | None, tokens: int, length: int = 256, **sections: Any) -> dict[str, Any]:
        return {
            "compute": {"threads": torch.get_num_threads()},
            "corpus": {
                "sources": [{"kind": "python_docs"}],
                "sequence_length": length,
                "train_tokens": tokens,
                "validation_tokens": 1024,
                "heldout_tokens": 2048,
            },
            "teacher": {"kind": "huggingface", "name": str(teacher)} if teacher else TEACHER.model_dump(mode="json"),
            "terms": {"decisions": [OWN] if teacher else []},
            "chat": {"prompt": None},
            **sections,
        }

    shrink: dict[str, Any] = {"kind": "shrink"}
    sampled = {"importance": {"tokens": 4096}}
    return {
        "llama-depth": recipe(llama, 16_384, student=shrink | {"layers": 4}),
        "qwen3-width-top-k": recipe(
            qwen,
            16_384,
            student=shrink | {"intermediate_size": 512},
            capture={"codec": {"kind": "top_k", "k": 32}},
            distill={"biased": True},
        ),
        "gemma2-all-ids": recipe(
            gemma,
            8_192,
            128,
            student=shrink | {"intermediate_size": 256, "vocabulary": {"keep": "all"}},
            export={"gguf": ["F16"]},
        ),
        "llama-fresh-dense": recipe(
            llama,
            1_024,
            128,
            student={"kind": "fresh", "config": {"num_hidden_layers": 2}},
            capture={"codec": {"kind": "dense"}},
            baseline=False,
        ),
        "smollm2-depth": recipe(None, 16_384, 512, student=shrink | {"layers": 16}),
        "smollm2-all-axes": recipe(
            None,
            16_384,
            student=shrink
            | sampled
            | {"layers": 20, "intermediate_size": 1024, "kv_heads": 2, "vocabulary": {"size": 8192}},
            distill={"batch_tokens": 1024},
            baseline=False,
        ),
        "smollm2-heads-no-repair": recipe(
            None, 8_192, student=shrink | {"layers": 10, "heal": False}, distill={"epochs": 2, "batch_tokens": 512}
        ),
        "smollm2-small-steps": recipe(
            None,
            8_192,
            128,
            student=shrink | sampled | {"layers": 12, "kv_heads": 2, "hidden_size": 480},
            distill={"batch_tokens": 256},
            export={"gguf": ["Q8_0"]},
        ),
    }


def compare(name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Plan and run one recipe, each by the command."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings | {"name": name}), encoding="utf-8")
    command = [sys.executable, "-m", "stillroom"]
    plan = json.loads(_said([*command, "plan", str(path), "--runs", str(folder), "--json"]))
    _said([*command, "run", str(path), "--runs", str(folder), "-q"])
    summary = read_json(folder / name / "summary.json")
    cache = read_json(folder / name / "capture" / "stage.json")
    captured = sum(entry["bytes"] for file, entry in cache["outputs"].items() if file.startswith("cache/"))
    stages = {}
    for stage, spent in summary["stages"].items():
        stages[stage] = {
            "seconds": [plan["stages"][stage]["seconds"], spent["seconds"]],
            "memory_bytes": [plan["stages"][stage]["memory_bytes"], spent["peak_memory_bytes"]],
        }
    peak = max(spent["peak_memory_bytes"] for spent in summary["stages"].values())
    seconds = sum(spent["seconds"] for spent in summary["stages"].values())
    files = {entry["type"]: entry["bytes"] for entry in summary["student"].get("gguf_files", ())}
    return {
        "parameters": [plan["student_parameters"], summary["student"]["parameters"]],
        "files": [plan["file_bytes"], files],
        "exact": plan["student_parameters"] == summary["student"]["parameters"] and plan["file_bytes"] == files,
        "cache_bytes": [plan["cache_bytes"], captured],
        "memory_bytes": [plan["memory_bytes"], peak],
        "seconds": [plan["seconds"], seconds],
        "planned_in_seconds": plan["planned_in_seconds"],
        "stages": stages,
    }


def _said(command: list[str]) -> str:
    """What a command prints; where it fails, the benchmark ends with what it complained of."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said, complained = process.communicate()
    except BaseException:
        end_group(process)
        raise
    if process.returncode:
        raise SystemExit(f"{' '.join(command[2:])}: exit {process.returncode}\n{complained[-2000:]}")
    return said


def error(pair: list[float]) -> float:
    """Relative error of what was planned."""
    planned, happened = pair
    return abs(planned - happened) / happened


def main() -> None:
    """Measure, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--only", nargs="*", help="names of recipes")
    options = arguments.parse_args()
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        chosen = recipes(folder)
        if options.quick:
            chosen = dict(list(chosen.items())[:4])
        for key, settings in chosen.items():
            if options.only and key not in options.only:
                continue
            details[key] = compare(key, settings, folder)
            shown = {what: details[key][what] for what in ("exact", "cache_bytes", "memory_bytes", "seconds")}
            print(key, json.dumps(shown), file=sys.stderr, flush=True)
    figures = {
        "parameters_exact": all(entry["exact"] for entry in details.values()),
        "cache_bytes_error": max(error(entry["cache_bytes"]) for entry in details.values()),
        "memory_error": max(error(entry["memory_bytes"]) for entry in details.values()),
        "time_error": max(error(entry["seconds"]) for entry in details.values()),
    }
    write(figures, details, options.json)


if __name__ == "__main__":
    main()
