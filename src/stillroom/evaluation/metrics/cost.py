"""What a model costs: parameters, bytes, memory, load time, speed, energy."""

from __future__ import annotations

from typing import Any

from stillroom.evaluation.bench import Bench
from stillroom.evaluation.metric import Metric, Result
from stillroom.evaluation.sections import Section, Table, Text
from stillroom.evaluation.speed import REPETITIONS, measure_speed, working_memory
from stillroom.evaluation.words import of
from stillroom.models.at_hand import is_held

PROMPT_TOKENS = 256
CARRIED = (
    "The teacher's weights do not fit this device in float32 and come to it layer by layer: its speed and its memory at work "
    "were not measured, and the student's speed was not compared with it."
)


def measure_cost(bench: Bench) -> dict[str, Any]:
    """The measure `cost`. Shrunk, baseline and student have one shape: speed and memory are the student's."""
    listed = bench.listed
    # Speeds are compared in turns, for which both are in memory.
    teacher = None if listed is not None else bench.load("teacher", beside=["student"]).model
    student = bench.load("student", beside=["teacher"])
    row = bench.heldout.row(0)
    ids = row.ids[0][row.segments[0] >= 0][:PROMPT_TOKENS]
    expanded = student.vocabulary.expand(ids)[0][:PROMPT_TOKENS]
    speeds = {}
    # A teacher whose layers come to the device one at a time would be measured by their way there.
    carried = teacher is not None and is_held(teacher)
    if carried:
        teacher = None
    if bench.config.speed_tokens:
        models = {"student": student.model} if teacher is None else {"teacher": teacher, "student": student.model}
        speeds = measure_speed(models, {"teacher": ids, "student": expanded}, bench.config.speed_tokens)
    memory = {"student": working_memory(student.model, expanded)}
    if teacher is not None:
        memory["teacher"] = working_memory(teacher, ids)
    del teacher, student  # before another is loaded
    models_found: dict[str, dict[str, Any]] = {}
    for name in bench.names:
        if name == "teacher" and listed is not None:
            # What it takes is its server's business.
            models_found[name] = {"parameters": listed.parameters}
            continue
        known = bench.known(name)
        models_found[name] = {
            "parameters": known.parameters,
            "bytes": known.stored_bytes,
            **({} if carried and name == "teacher" else {"working_memory_bytes": memory.get(name, memory["student"])}),
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
        "warnings": [CARRIED] if carried else [],
    }


def sections(result: Result) -> list[Section]:
    """Teacher and student side by side."""
    note = (
        f"PyTorch, float32, one text at a time: {result['prompt_tokens']} tokens of prompt, {result['decoded_tokens']} "
        f"decoded. {result['interval']}; ratios are paired by repetition. Load time with files as the system had them. "
        "Stored: the teacher in the format it came in, the student in float32; its files for devices are above."
    )
    return [
        Section(
            "running",
            "What it costs to run",
            [
                _table(result["models"]["teacher"], result["models"]["student"]),
                Text(note, note=True, card=False),
                Text(f"PyTorch, float32. {result['interval']}.", page=False),
            ],
            order=90,
        )
    ]


def _table(teacher: dict[str, Any], student: dict[str, Any]) -> Table:
    both = (teacher, student)
    rows = [
        ["parameters", *(f"{model['parameters']:,}" for model in both), _ratio(student, teacher, "parameters")],
        ["stored", *(_shown(model, "bytes", 1e-6, ",.1f", " MB") for model in both), _ratio(student, teacher, "bytes")],
        [
            "memory at work, float32",
            *(_shown(model, "working_memory_bytes", 1e-6, ",.0f", " MB") for model in both),
            _ratio(student, teacher, "working_memory_bytes"),
        ],
        [
            "load time",
            *(_shown(model, "load_seconds", 1.0, ".2f", " s") for model in both),
            _ratio(student, teacher, "load_seconds"),
        ],
    ]
    for phase in ("prefill", "decode"):
        key = f"{phase}_tokens_per_second"
        if key in student:
            rows.append(
                [
                    f"{phase}, tokens per second",
                    of(teacher, key, 1) if key in teacher else "–",
                    of(student, key, 1),
                    of(student, f"{phase}_speedup", 2) + " ×" if f"{phase}_speedup" in student else "–",
                ]
            )
    if "joules_per_token" in student and "joules_per_token" in teacher:
        rows.append(
            [
                "energy a decoded token",
                *(f"{model['joules_per_token']:.3g} J" for model in both),
                _ratio(student, teacher, "joules_per_token"),
            ]
        )
    return Table(["", "teacher", "student", "student ÷ teacher"], rows, label="Cost of running")


def _ratio(mine: dict[str, Any], theirs: dict[str, Any], key: str) -> str:
    return f"{mine[key] / theirs[key]:.2f} ×" if theirs.get(key) else "–"


def _shown(model: dict[str, Any], key: str, factor: float, form: str, unit: str) -> str:
    """A number of a model; of a teacher behind an endpoint it is not known."""
    return f"{model[key] * factor:{form}}{unit}" if key in model else "–"


METRIC = Metric(
    name="cost",
    function=measure_cost,
    what="bytes, memory, load time, speed, energy",
    settings=("speed_tokens",),
    order=30,
    numbers=("parameters", "bytes", "working_memory_bytes", "prefill_*", "decode_*"),
    sections=sections,
    with_endpoint=True,
)
