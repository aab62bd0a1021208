"""What a model costs: parameters, bytes, memory, load time, speed, energy."""

from __future__ import annotations

from typing import Any

from stillroom.evaluation.bench import Bench
from stillroom.evaluation.speed import REPETITIONS, measure_speed, working_memory
from stillroom.models.load import count_parameters

PROMPT_TOKENS = 256


def measure_cost(bench: Bench) -> dict[str, Any]:
    """The measure `cost`. Shrunk, baseline and student have one shape: speed and memory are the student's."""
    teacher, student = bench.load("teacher"), bench.load("student")
    row = bench.heldout.row(0)
    ids = row.ids[0][row.segments[0] >= 0][:PROMPT_TOKENS]
    expanded = student.vocabulary.expand(ids)[0][:PROMPT_TOKENS]
    speeds = {}
    if bench.config.speed_tokens:
        models = {"teacher": teacher.model, "student": student.model}
        speeds = measure_speed(models, {"teacher": ids, "student": expanded}, bench.config.speed_tokens)
    memory = {
        "teacher": working_memory(teacher.model, ids),
        "student": working_memory(student.model, expanded),
    }
    models_found: dict[str, dict[str, Any]] = {}
    for name in bench.names:
        loaded = bench.load(name)
        models_found[name] = {
            "parameters": count_parameters(loaded.model),
            "bytes": loaded.stored_bytes,
            "working_memory_bytes": memory.get(name, memory["student"]),
            "load_seconds": round(bench.subjects[name].seconds, 3),
            **speeds.get(name, {}),
        }
    mine = models_found["student"]
    bounds = {key: [mine[key], None, None] for key in ("parameters", "bytes", "working_memory_bytes")}
    for key, value in speeds.get("student", {}).items():
        if not key.endswith("_interval"):
            bounds[key] = [value, *mine.get(f"{key}_interval", [None, None])]
    return {
        "models": models_found,
        "prompt_tokens": len(ids),
        "decoded_tokens": bench.config.speed_tokens,
        "repetitions": REPETITIONS,
        "interval": f"95 % Student's t over {REPETITIONS} interleaved repetitions",
        "bounds": bounds,
    }
