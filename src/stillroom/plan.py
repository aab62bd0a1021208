"""What a recipe will take, before anything is spent. Knows nothing of how stages do their work.

Text is read and counted as the stage `corpus` does it (or taken from there, if it is done); parameters and sizes are counted
from configs; times and memory come from a pilot on this machine (:mod:`stillroom.pilot`) and what the stages do
(:mod:`stillroom.costs`).
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillroom import costs
from stillroom.costs import Counts
from stillroom.errors import DiskFull, OutOfMemory, RunError
from stillroom.files import read_json, release_memory, write_json
from stillroom.progress import Progress, clock, say
from stillroom.recipe import Recipe, load_recipe
from stillroom.run import AnyPath, Run
from stillroom.student.config import ExistingStudent, FreshStudent, ShrinkStudent
from stillroom.teacher.config import GgufTeacher
from stillroom.verbs import make_callable

KEPT = "plan.json"
"""The plan's name in a run's folder."""


def make_plan(recipe: Recipe | AnyPath, runs: AnyPath = "runs", *, quiet: bool = True) -> dict[str, Any]:
    """What a recipe will take, and whether it fits.

    Args:
        recipe: A recipe or its file.
        runs: The folder that holds runs; a corpus that a run there has finished is used.
        quiet: Draw no progress.

    Returns:
        Parameters, tokens, file sizes, and for each stage seconds, bytes of memory and of disk; ``verdict`` is ``go`` or
        ``stop``, ``broken`` says which limits are broken and ``nearest`` what to change in the recipe so that it fits.

    Raises:
        StillroomError: What the stages would raise: the recipe cannot be carried out as written.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    runs = Path(runs)
    begun = time.perf_counter()
    text = _text(recipe, runs, Progress(quiet))
    student = _student(recipe, text)
    pilot = _pilot(recipe, text, student)
    counts = Counts(
        teacher=student.teacher_parameters,
        student=student.parameters,
        whole=student.whole,
        shape=student.shape,
        train=text.tokens["train"],
        validation=text.tokens["validation"],
        heldout=text.tokens["heldout"],
        length=text.train.length,
        pieces=student.pieces,
        corpus_seconds=text.seconds,
        teacher_bytes=student.teacher_bytes,
    )
    seconds = costs.stage_seconds(recipe, counts, pilot)
    memory = costs.stage_memory(recipe, counts, pilot)
    disk = costs.stage_disk(recipe, counts, pilot)
    disk["export"] = float(sum(student.files.values()))
    plan: dict[str, Any] = {
        "name": recipe.name,
        "teacher_parameters": counts.teacher,
        "student_parameters": counts.student,
        "student_parameters_exact": student.exact,
        "student_shape": student.shape.words() if student.shape else None,
        "tokens": text.tokens,
        "steps": costs.steps_of(recipe, counts),
        "training_operations": costs.training_operations(recipe, counts),
        "file_bytes": student.files,
        "bytes_per_position": round(pilot.bytes_per_position, 2),
        "cache_bytes": round(disk["capture"]),
        "stages": {
            name: {
                "seconds": round(seconds[name], 1),
                "memory_bytes": round(memory.get(name, 0)),
                "disk_bytes": round(disk.get(name, 0)),
            }
            for name in seconds
        },
        "seconds": round(sum(seconds.values()), 1),
        "memory_bytes": round(max(memory.values())),
        "disk_bytes": round(sum(disk.values())),
        "baseline_adds": {
            "seconds": round(seconds.get("baseline", 0), 1),
            "disk_bytes": round(disk.get("baseline", 0)),
        },
        "planned_in_seconds": round(time.perf_counter() - begun, 1),
        "terms": _terms(recipe),
    }
    return plan | _verdict(recipe, plan, counts, pilot, runs)


@dataclass(frozen=True)
class _Text:
    """The corpus, counted."""

    train: Any
    tokens: dict[str, int]
    tokenizer: Any
    seconds: float


@dataclass(frozen=True)
class _Planned:
    """The student, without weights."""

    teacher_parameters: int
    teacher_bytes: int
    whole: Any
    shape: Any
    parameters: int
    exact: bool
    config: Any
    vocabulary: Any
    pieces: float
    files: dict[str, int]


def _text(recipe: Recipe, runs: Path, progress: Progress) -> _Text:
    """The corpus of the run, if it is done; otherwise the text is read now."""
    from stillroom.corpus.build import build_corpus
    from stillroom.corpus.sequences import Sequences
    from stillroom.corpus.split import SPLITS
    from stillroom.pipeline import STAGES, inputs_of
    from stillroom.teacher.load import load_tokenizer

    tokenizer = load_tokenizer(recipe.teacher)
    run = Run(runs / recipe.name, recipe)
    stage = run.stage("corpus")
    record = stage.record
    if record is not None and stage.holds(inputs_of(run, STAGES[0])):
        splits = {name: Sequences.load(stage.path / f"{name}.safetensors") for name in SPLITS}
        seconds = record["seconds"]
    else:
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            splits = build_corpus(recipe.corpus, tokenizer, recipe.seed, progress, scratch=Path(folder)).splits
        seconds = time.perf_counter() - begun
    tokens = {name: len(split) * split.length for name, split in splits.items()}
    return _Text(splits["train"], tokens, tokenizer, seconds)


def _student(recipe: Recipe, text: _Text) -> _Planned:
    """The student's shape, parameters and files, from configs alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from stillroom.student.adapters import adapter_of
    from stillroom.student.shape import Anatomy, Shape, tokenizer_bytes
    from stillroom.student.trim import whole as whole_vocabulary
    from stillroom.teacher.load import count_parameters, model_folder, quietly

    config, stored = _teacher_config(recipe)
    with torch.device("meta"):
        teacher = AutoModelForCausalLM.from_config(config)
    teacher.tie_weights()
    rows = teacher.get_output_embeddings().weight.shape[0]
    student = recipe.student
    shape = None
    exact = True
    tokenizer, vocabulary, pieces = text.tokenizer, whole_vocabulary(text.tokenizer, rows), 1.0
    if isinstance(student, ShrinkStudent | FreshStudent) and student.vocabulary.keep == "corpus":
        tokenizer, vocabulary, pieces = _trimmed(student.vocabulary, text, rows)
    whole = Shape(
        config.num_hidden_layers, config.intermediate_size, config.num_key_value_heads, config.hidden_size, rows
    )
    if isinstance(student, ShrinkStudent):
        anatomy = Anatomy.of(teacher, adapter_of(teacher), tokenizer_bytes(tokenizer))
        shape, exact = _shape(student, anatomy, vocabulary.student_size)
        parameters = anatomy.parameters(shape)
        changed = _config_of(config, whole, shape)
    else:
        if isinstance(student, FreshStudent):
            changed = copy.deepcopy(config)
            changed.vocab_size = vocabulary.student_size
            for key, value in student.config.items():
                setattr(changed, key, value)
            _fit_layer_lists(changed, config.num_hidden_layers)
        else:
            assert isinstance(student, ExistingStudent)
            with quietly():
                changed = AutoConfig.from_pretrained(model_folder(student.name, student.revision))
        with torch.device("meta"):
            fresh = AutoModelForCausalLM.from_config(changed)
        fresh.tie_weights()
        parameters = count_parameters(fresh)
    files = _file_bytes(recipe, changed, tokenizer, vocabulary.student_used)
    return _Planned(
        count_parameters(teacher), stored, whole, shape, parameters, exact, changed, vocabulary, pieces, files
    )


def _trimmed(config: Any, text: _Text, rows: int) -> tuple[Any, Any, float]:
    """The smaller tokenizer, its map, and student tokens a teacher token of the training text."""
    from stillroom.student.languages import language_counts, require_languages
    from stillroom.student.trim import trim

    require_languages(config.languages)
    ids = text.train.ids[text.train.segments >= 0]
    counts = Counter(ids.tolist())
    counts.update(language_counts(text.tokenizer, config.languages))
    trimmed = trim(text.tokenizer, counts, config.size, rows, config.multiple_of)
    return trimmed.tokenizer, trimmed.vocabulary, float(trimmed.vocabulary.lengths[ids].double().mean())


def _shape(student: ShrinkStudent, anatomy: Any, vocabulary: int) -> tuple[Any, bool]:
    """The shape as given; with a target the largest that fits, for which one it will be is measured later."""
    from stillroom.student.limits import limits_of
    from stillroom.student.planning import AXIS_NAMES
    from stillroom.student.solver import LossModel, grid, solve

    whole = anatomy.teacher
    given = dict(
        zip(
            ("layers", "channels", "groups", "hidden"),
            (student.layers, student.ffn_width, student.key_value_groups, student.hidden_width),
            strict=True,
        )
    )
    fixed = {axis: size for axis, size in given.items() if size is not None}
    if student.target is None:
        return replace(whole, vocabulary=vocabulary, **fixed), True
    axes = [AXIS_NAMES[axis] for axis in student.target.axes if AXIS_NAMES[axis] not in fixed]
    limits = limits_of(student.target)
    shapes = grid(whole, fixed, axes, vocabulary)
    solve(anatomy, limits, LossModel(whole, {}), shapes)  # says what binds where nothing fits
    fitting = [shape for shape in shapes if not limits.broken(limits.measure(anatomy, shape))]
    return max(fitting, key=anatomy.parameters), False


def _config_of(config: Any, whole: Any, shape: Any) -> Any:
    """The teacher's config in a smaller shape."""
    from stillroom.student.adapters import cut_config, head_width

    changed = copy.deepcopy(config)
    width = head_width(config)
    cut_config(changed, list(range(shape.layers)))
    changed.intermediate_size = shape.channels
    changed.num_attention_heads = config.num_attention_heads // whole.groups * shape.groups
    changed.num_key_value_heads = shape.groups
    changed.head_dim = width
    changed.hidden_size = shape.hidden
    changed.vocab_size = shape.vocabulary
    return changed


def _fit_layer_lists(config: Any, before: int) -> None:
    from stillroom.student.adapters import LAYER_LISTS

    for key in LAYER_LISTS:
        value = getattr(config, key, None)
        if isinstance(value, list) and len(value) == before != config.num_hidden_layers:
            repeated = value * (1 + config.num_hidden_layers // max(1, len(value)))
            setattr(config, key, repeated[: config.num_hidden_layers])


def _file_bytes(recipe: Recipe, config: Any, tokenizer: Any, rows: int) -> dict[str, int]:
    """Bytes of each file that is exported, exactly: its header is written, its tensors are counted."""
    from stillroom.export.gguf_file import planned_bytes
    from stillroom.export.mixes import WEIGHTED
    from stillroom.teacher.load import stated_licence

    licence = stated_licence(recipe.teacher)
    weighed = recipe.export.importance_tokens > 0
    return {
        kind: planned_bytes(
            config,
            tokenizer,
            kind,
            name=recipe.name,
            licence=licence,
            rows=rows,
            importance=weighed and kind in WEIGHTED,
        )
        for kind in recipe.export.gguf
    }


def _teacher_config(recipe: Recipe) -> tuple[Any, int]:
    """The teacher's config and the bytes of its stored weights."""
    from transformers import AutoConfig

    from stillroom.teacher.load import gguf_path, model_folder, quietly

    with quietly():
        if isinstance(recipe.teacher, GgufTeacher):
            path = gguf_path(recipe.teacher.path)
            return AutoConfig.from_pretrained(path.parent, gguf_file=path.name), path.stat().st_size
        folder = model_folder(recipe.teacher.name, recipe.teacher.revision)
        config = AutoConfig.from_pretrained(folder)
        return config, sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _pilot(recipe: Recipe, text: _Text, student: _Planned) -> Any:
    from stillroom.pilot import run_pilot

    pilot = run_pilot(recipe, text.train, student.vocabulary, student.config)
    release_memory()
    return pilot


def _terms(recipe: Recipe) -> dict[str, Any] | None:
    from stillroom.intake.terms import verdict_of_recipe

    return verdict_of_recipe(recipe).as_dict()


def _verdict(recipe: Recipe, plan: dict[str, Any], counts: Counts, pilot: Any, runs: Path) -> dict[str, Any]:
    """Whether it fits, what does not, and the nearest recipe that does."""
    import psutil

    limits = recipe.limits
    free = {
        "memory_bytes": limits.memory_bytes or psutil.virtual_memory().available + pilot.base_bytes,
        "disk_bytes": limits.disk_bytes or shutil.disk_usage(_existing(runs)).free,
        "seconds": limits.seconds or float("inf"),
    }
    broken = [name for name, value in free.items() if plan[name] > value]
    nearest: dict[str, Any] = {}
    if "memory_bytes" in broken:
        nearest |= _less_memory(recipe, counts, pilot, free["memory_bytes"])
    if "disk_bytes" in broken or "seconds" in broken:
        nearest |= _less_text(counts, plan, free)
    terms = plan["terms"]
    if terms is not None and terms["verdict"] == "refused":
        broken.append("terms")
    return {
        "limits": {name: value for name, value in free.items() if value != float("inf")},
        "verdict": "stop" if broken else "go",
        "broken": broken,
        "nearest": nearest,
    }


def _less_memory(recipe: Recipe, counts: Counts, pilot: Any, limit: float) -> dict[str, Any]:
    """A smaller forward pass, where that is enough."""
    tokens = recipe.distill.micro_batch_tokens or recipe.distill.batch_tokens
    while tokens > counts.length:
        tokens = max(counts.length, tokens // 2)
        smaller = recipe.model_copy(
            update={"distill": recipe.distill.model_copy(update={"micro_batch_tokens": tokens})}
        )
        if max(costs.stage_memory(smaller, counts, pilot).values()) <= limit:
            return {"distill.micro_batch_tokens": tokens}
    return {}


def _less_text(counts: Counts, plan: dict[str, Any], free: dict[str, float]) -> dict[str, Any]:
    """As much text as fits, where less text is enough."""
    most = 1.0
    for key, per_text in (
        ("disk_bytes", plan["cache_bytes"] + 29.0 * counts.train),
        (
            "seconds",
            sum(
                plan["stages"][name]["seconds"] for name in ("capture", "distill", "baseline") if name in plan["stages"]
            ),
        ),
    ):
        over = plan[key] - free[key]
        if over > 0 and per_text > 0:
            most = min(most, 1 - over / per_text)
    tokens = int(most * counts.train * 0.98) // counts.length * counts.length
    return {"corpus.train_tokens": tokens} if tokens >= counts.length else {}


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def begin_with_plan(run: Run) -> None:
    """Plan a run, once for each recipe; show the plan and keep it in the run's folder.

    Raises:
        OutOfMemory: The recipe's own limit on memory does not suffice.
        DiskFull: Its limit on disk does not.
        RunError: Its limit on time does not.
    """
    path = run.path / KEPT
    if path.is_file() and read_json(path).get("recipe_digest") == run.recipe_digest:
        return
    plan = make_plan(run.recipe, run.path.parent)
    show_plan(plan)
    for name, raised in (("memory_bytes", OutOfMemory), ("disk_bytes", DiskFull), ("seconds", RunError)):
        limit = getattr(run.recipe.limits, name)
        if limit is not None and name in plan["broken"]:
            nearest = ", ".join(f"`{key}: {value}`" for key, value in plan["nearest"].items())
            raise raised(
                f"`limits.{name}` is {limit:,}, and the plan comes to {plan[name]:,}.",
                f"Nearest that fits: {nearest}." if nearest else "Choose a smaller student, or raise the limit.",
            )
    write_json(path, plan | {"recipe_digest": run.recipe_digest})


def planned_needs(run: Run, stage: str) -> dict[str, int] | None:
    """What the kept plan of a run says of a stage; None where there is none of this recipe."""
    path = run.path / KEPT
    if not path.is_file():
        return None
    plan = read_json(path)
    found: dict[str, int] | None = plan["stages"].get(stage)
    return found if plan.get("recipe_digest") == run.recipe_digest else None


def show_plan(plan: dict[str, Any]) -> None:
    """The plan on stderr, in a few lines."""
    teacher, student = plan["teacher_parameters"], plan["student_parameters"]
    say(f"Plan of `{plan['name']}`")
    say(f"  teacher   {teacher:,} parameters")
    most = "" if plan["student_parameters_exact"] else "at most "
    say(f"  student   {most}{student:,} parameters, {student / teacher:.0%} of the teacher's")
    if plan["student_shape"]:
        say(f"            {plan['student_shape']}")
    if plan["file_bytes"]:
        say("  files     " + ", ".join(f"{kind} {size / 1e6:,.1f} MB" for kind, size in plan["file_bytes"].items()))
    say("  tokens    " + ", ".join(f"{value:,} {name}" for name, value in plan["tokens"].items()))
    say(f"  training  {plan['steps']:,} steps, {plan['training_operations']:.1e} operations")
    limits = plan["limits"]
    say(
        f"  cache     {plan['cache_bytes'] / 1e6:,.1f} MB, {plan['bytes_per_position']:.1f} bytes a position; "
        f"disk {plan['disk_bytes'] / 1e9:.1f} of {limits['disk_bytes'] / 1e9:,.1f} GB"
    )
    say(f"  memory    {plan['memory_bytes'] / 1e9:.1f} of {limits['memory_bytes'] / 1e9:.1f} GB")
    for name, stage in plan["stages"].items():
        say(f"    {name:<9} {clock(stage['seconds']):>8}   {stage['memory_bytes'] / 1e9:.1f} GB")
    added = plan["baseline_adds"]["seconds"]
    say(
        f"  time      about {clock(plan['seconds'])} on this machine as it is now"
        + (f"; the baseline is {clock(added)} of it" if added else "")
    )
    terms = plan["terms"]
    if terms is not None:
        say(f"  terms     {terms['verdict'].replace('_', ' ')}")
        if terms["verdict"] == "refused":
            for reason in terms["reasons"]:
                say(f"            {reason}")
    if plan["verdict"] == "go":
        say("  verdict   go")
        return
    words = {"memory_bytes": "memory", "disk_bytes": "disk", "seconds": "time", "terms": "terms"}
    say(f"  verdict   stop: {', '.join(words[name] for name in plan['broken'])}")
    if plan["nearest"]:
        say("  nearest   " + ", ".join(f"{key}: {value}" for key, value in plan["nearest"].items()))


make_callable(__name__, "stillroom.plan:make_plan")
