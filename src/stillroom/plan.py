"""What a recipe will take, before anything is spent. Knows nothing of how stages do their work.

Counts (parameters, tokens, bytes) come from the recipe and the models' configs; times come from a pilot of about a second
that measures this machine's matrix products, and from shares of that rate that the stages reach (`EFFICIENCY`).
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from stillroom.compute import choose_dtype
from stillroom.progress import clock, say
from stillroom.recipe import Recipe, load_recipe
from stillroom.run import AnyPath
from stillroom.student.config import FreshStudent, ShrinkStudent
from stillroom.teacher.config import DenseCodec, GgufTeacher, TopKCodec
from stillroom.verbs import make_callable

EFFICIENCY = {"forward": 0.35, "train": 0.25}
"""Share of the measured matrix-product rate that a forward pass and a training step reach (docs/speed.md)."""


def make_plan(recipe: Recipe | AnyPath, runs: AnyPath = "runs") -> dict[str, Any]:
    """Parameters, tokens, bytes and seconds that a recipe will take, and whether they fit."""
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    runs = Path(runs)
    config = _teacher_config(recipe)
    teacher = _parameters(config)
    student = _student_parameters(recipe, config)
    corpus = recipe.corpus
    train, validation, heldout = corpus.train_tokens, corpus.validation_tokens, corpus.heldout_tokens
    dtype = choose_dtype(recipe.distill.precision, "cpu")
    rate = _matrix_rate(config.hidden_size, dtype)
    teacher_rate = _matrix_rate(config.hidden_size, choose_dtype(recipe.teacher.dtype, "cpu"))
    exact_rate = _matrix_rate(config.hidden_size, choose_dtype("float32", "cpu"))
    bytes_per_position = _bytes_per_position(recipe, config.vocab_size)
    plan: dict[str, Any] = {
        "name": recipe.name,
        "teacher_parameters": teacher,
        "student_parameters_at_most": student,
        "tokens": {"train": train, "validation": validation, "heldout": heldout},
        "matrix_flops_per_second": round(rate),
        "memory_bytes": _memory(teacher, student, recipe),
    }
    if train is not None:
        captured = train + (validation or 0)
        passes = recipe.distill.epochs
        seconds = {
            "corpus": 15.0,
            "capture": 2 * teacher * captured / (teacher_rate * EFFICIENCY["forward"]) + 10,
            "shrink": 30.0,
            "distill": 6 * student * train * passes / (rate * EFFICIENCY["train"]) + 10,
        }
        if recipe.baseline:
            seconds["baseline"] = seconds["distill"]
        seconds["export"] = 20.0 * max(1, len(recipe.export.gguf))
        models = 2 + (1 if recipe.baseline else 0)
        seconds["evaluate"] = (
            2 * (teacher + models * student) * (heldout or 0) / (exact_rate * EFFICIENCY["forward"]) + 15
        )
        plan["seconds"] = {name: round(value) for name, value in seconds.items()}
        plan["training_operations"] = 6 * student * train * passes
        plan["cache_bytes"] = round(bytes_per_position * captured)
    checkpoints = 16 * student if recipe.distill else 0
    plan["disk_bytes"] = plan.get("cache_bytes", 0) + 4 * student * (3 if recipe.baseline else 2) + checkpoints
    plan["disk_free_bytes"] = shutil.disk_usage(_existing(runs)).free
    import psutil

    plan["memory_free_bytes"] = psutil.virtual_memory().available
    plan["obstacles"] = _obstacles(plan)
    return plan


def show_plan(plan: dict[str, Any]) -> None:
    """The plan on stderr, in a few lines."""
    tokens = plan["tokens"]
    teacher, student = plan["teacher_parameters"], plan["student_parameters_at_most"]
    say(f"Plan of `{plan['name']}`")
    say(f"  teacher   {teacher / 1e6:,.1f} million parameters")
    say(f"  student   at most {student / 1e6:,.1f} million ({student / teacher:.0%} of the teacher)")
    words = ", ".join(f"{value:,} {name}" for name, value in tokens.items() if value) or "all there are"
    say(f"  tokens    {words}")
    say(f"  memory    about {plan['memory_bytes'] / 1e9:.1f} GB of {plan['memory_free_bytes'] / 1e9:.1f} GB free")
    say(f"  disk      about {plan['disk_bytes'] / 1e9:.1f} GB of {plan['disk_free_bytes'] / 1e9:.0f} GB free")
    if "seconds" in plan:
        parts = ", ".join(f"{name} {clock(value)}" for name, value in plan["seconds"].items())
        say(f"  time      about {clock(sum(plan['seconds'].values()))} on this machine as it is now: {parts}")
    for obstacle in plan["obstacles"]:
        say(f"  mind      {obstacle}")


def _teacher_config(recipe: Recipe) -> Any:
    from transformers import AutoConfig

    from stillroom.teacher.load import gguf_path, model_folder, quietly

    with quietly():
        if isinstance(recipe.teacher, GgufTeacher):
            path = gguf_path(recipe.teacher.path)
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        return AutoConfig.from_pretrained(model_folder(recipe.teacher.name, recipe.teacher.revision))


def _parameters(config: Any) -> int:
    """Parameters of a config, exactly, without their memory."""
    import torch
    from transformers import AutoModelForCausalLM

    from stillroom.teacher.load import count_parameters

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return count_parameters(model)


def _student_parameters(recipe: Recipe, config: Any) -> int:
    """Parameters of the student; an upper bound where its vocabulary depends on the text."""
    import copy

    student = recipe.student
    changed = copy.deepcopy(config)
    if isinstance(student, ShrinkStudent):
        layers = min(student.layers or config.num_hidden_layers, config.num_hidden_layers)
        for key in ("layer_types", "no_rope_layers"):
            value = getattr(changed, key, None)
            if isinstance(value, list):
                setattr(changed, key, value[:layers])
        changed.num_hidden_layers = layers
        if student.vocabulary.size:
            changed.vocab_size = min(student.vocabulary.size, config.vocab_size)
    elif isinstance(student, FreshStudent):
        for key, value in student.config.items():
            setattr(changed, key, value)
    else:
        from transformers import AutoConfig

        from stillroom.teacher.load import model_folder

        changed = AutoConfig.from_pretrained(model_folder(student.name, student.revision))
    return _parameters(changed)


def _bytes_per_position(recipe: Recipe, vocabulary: int) -> float:
    codec = recipe.capture.codec
    if isinstance(codec, DenseCodec):
        return 4.0 * vocabulary
    if isinstance(codec, TopKCodec):
        return 6.0 * codec.k
    return 22.0 * (1 / 32) / codec.tau


def _memory(teacher: int, student: int, recipe: Recipe) -> int:
    """The larger of a float32 teacher beside its students in evaluation, and training with AdamW; plus libraries."""
    models = 3 if recipe.baseline else 2
    evaluating = 4 * teacher + 4 * student * models
    training = 16 * student + 12 * student
    return max(evaluating, training) + 1_200_000_000


def _matrix_rate(width: int, dtype: Any) -> float:
    """Operations a second of a feed-forward layer's matrix product, the best of a few."""
    import torch

    left = torch.randn(2048, width, dtype=dtype)
    right = torch.randn(4 * width, width, dtype=dtype)
    best = 0.0
    begun = time.perf_counter()
    while time.perf_counter() - begun < 0.3:
        started = time.perf_counter()
        left @ right.T
        best = max(best, 2 * 2048 * width * 4 * width / (time.perf_counter() - started))
    return best


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _obstacles(plan: dict[str, Any]) -> list[str]:
    found = []
    if plan["disk_bytes"] > plan["disk_free_bytes"]:
        found.append("the disk has too little room; free some, or choose another folder with --runs")
    if plan["memory_bytes"] > plan["memory_free_bytes"]:
        found.append("memory may not suffice; close other programs, or choose a smaller student")
    return found


make_callable(__name__, "stillroom.plan:make_plan")
