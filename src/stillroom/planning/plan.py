"""What a recipe will take, before anything is spent.

Text is read and counted as the stage `corpus` does it (or taken from there, if it is done); parameters and sizes are counted
from configs; a pilot profiles this machine (:mod:`stillroom.planning.pilot`), and each stage computes from all of this what it
takes (its package's module ``stage_cost``).
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import DiskFull, OutOfMemory, RunError, UsageError
from stillroom.core.files import read_json, write_json
from stillroom.core.memory import release_memory
from stillroom.core.progress import Progress, clock, say
from stillroom.evaluation.floors import require_measurable
from stillroom.evaluation.registry import check_names, require_askable
from stillroom.models.compute import require_device
from stillroom.models.load import config_parameters
from stillroom.models.stored_size import stored_size
from stillroom.planning.card import Card, Model, card_of, card_plan, price_of
from stillroom.planning.cluster import EGRESS, Worker, cluster_plan, show_cluster
from stillroom.planning.counting import Planned, Text, check_student, count_student, count_text
from stillroom.planning.idle import idle_keys
from stillroom.planning.needs import Need, install, missing_needs, require_needs
from stillroom.planning.paths import require_paths
from stillroom.recipe.reading import load_recipe
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.routes import OWN
from stillroom.recipe.student import DenseStudent, ShrinkStudent
from stillroom.recipe.teacher import EndpointTeacher
from stillroom.runs.costs import FLOAT_BYTES, Counts, Profile, StageCost
from stillroom.runs.run import AnyPath, Run
from stillroom.runs.stages import stages_of
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students.given import student_tokenizer
from stillroom.students.importance import cut_short, few_tokens
from stillroom.students.turns import require_turns
from stillroom.teachers.endpoint.stage import require_possible
from stillroom.teachers.original import original_tokenizers
from stillroom.teachers.several import other_tokenizers
from stillroom.teachers.tokenizers import differences
from stillroom.training.losses.registry import require_fit
from stillroom.training.refusals import require_rounds, require_rounds_fit

if TYPE_CHECKING:
    from stillroom.corpus.sequences import Sequences

_FROM = {"given": "from the recipe", "sweep": "from a short sweep", "table": "from a table"}
KEPT = "plan.json"
"""The plan's name in a run's folder."""
HIGH_LEARNING_RATE = 0.02
"""A learning rate above it is named in the plan."""
MANY_PASSES, COARSE_TAU = 4, 0.01
"""Passes over one draw of the teacher's signals from which its noise tells, and the codec's `tau` up to which it does not
(`benchmarks.draws`: with 1/36 eight passes end at 1.025 times the KL that whole distributions give, with 1/128 at 1.009)."""
TINY_PARAMETERS, TINY_TOKENS = 10_000_000, 10_000_000
"""Parameters of teacher and student, and tokens of text, up to which a quiet run goes on without a pilot."""


@dataclass(frozen=True)
class OnCluster:
    """What a plan for many machines is asked for.

    Attributes:
        worker: What a worker is: a machine like ``this``, by the pilot, or a card, by arithmetic.
        workers: How many; None shows a few numbers.
        price: Dollars of a worker's hour; None takes a usual one.
        egress_price: Dollars of a GB that leaves the store's region.
    """

    worker: Worker = "this"
    workers: int | None = None
    price: float | None = None
    egress_price: float = EGRESS


def make_plan(
    recipe: Recipe | AnyPath, runs: AnyPath = "runs", *, quiet: bool = True, cluster: OnCluster | None = None
) -> dict[str, Any]:
    """What a recipe will take, and whether it fits.

    Args:
        recipe: A recipe or its file.
        runs: The folder that holds runs; a corpus that a run there has finished is used.
        quiet: Draw no progress.
        cluster: Plan for many machines too: ``cluster`` of the answer.

    Returns:
        Parameters, tokens, file sizes, and for each stage seconds, bytes of memory and of disk; ``verdict`` is ``go`` or
        ``stop``, ``broken`` says which limits are broken and ``nearest`` what to change in the recipe so that it fits;
        ``missing`` lists optional packages that the recipe needs, and ``install`` the command that brings them.

    Raises:
        MissingDependency: The text cannot be read, or nothing trained, without a package that is missing.
        OutOfMemory: A stage does not fit into the GPU's memory.
        StillroomError: What the stages would raise: the recipe cannot be carried out as written.
    """
    from stillroom.training.stage_cost import (
        learning_rate_from,
        step_tokens,
        training_operations,
        training_steps,
        written,
    )

    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    runs = Path(runs)
    begun = time.perf_counter()
    require_fit(recipe.distill, recipe.capture, recipe.student)
    needs, text, student = _counted(recipe, runs, quiet)
    gpu = _gpu(recipe, text, student)
    profile = _profile(recipe, text, student)
    counts = Counts(
        teacher_parameters=student.teacher_parameters,
        student_parameters=student.parameters,
        untrimmed_parameters=student.untrimmed_parameters,
        teacher_shape=student.teacher_shape,
        student_shape=student.shape,
        student_layers=student.config.num_hidden_layers,
        train_tokens=text.row_tokens["train"],
        text_tokens=text.tokens["train"],
        validation_tokens=text.row_tokens["validation"],
        heldout_tokens=text.row_tokens["heldout"],
        sequence_length=text.train.length,
        expansion=student.expansion,
        corpus_seconds=text.seconds,
        gguf_bytes=student.files,
        teacher_is_here=not isinstance(recipe.teacher, EndpointTeacher),
        other_teachers=tuple(
            config_parameters(config)
            for name, config in recipe.learned_from.items()
            if name != OWN and not isinstance(config, EndpointTeacher)
        ),
        adapter_parameters=student.adapters["trained_parameters"] if student.adapters is not None else None,
        writer_parameters=_writer_parameters(recipe),
        merges_ids=_merges_ids(student),
    )
    costs = stage_costs(recipe, counts, profile)
    baseline = costs.get("baseline", StageCost(0, 0))
    plan: dict[str, Any] = {
        "name": recipe.name,
        "teacher_parameters": counts.teacher_parameters,
        "quantized": _quantized(recipe),
        "student_parameters": counts.student_parameters,
        "student_parameters_exact": student.exact,
        "student_shape": student.shape.words() if student.shape else None,
        "student_note": student.note or None,
        **({"alignment": student.alignment} if student.alignment is not None else {}),
        **({"lora": _lora(recipe, student)} if student.adapters is not None else {}),
        "tokens": text.tokens,
        "text_notes": list(text.told),
        "targets_without_context": text.without_context,
        "steps": training_steps(recipe, counts),
        "step_tokens": step_tokens(recipe, counts),
        "learning_rate_from": learning_rate_from(recipe, counts),
        "notes": _notes(recipe, text, student),
        "training_operations": training_operations(recipe, counts),
        "file_bytes": student.files,
        "bytes_per_position": round(profile.bytes_per_position, 2),
        "cache_bytes": round(costs["capture"].disk_bytes),
        "stages": {
            name: {
                "seconds": round(cost.seconds, 3),
                "memory_bytes": round(cost.memory_bytes),
                "disk_bytes": round(cost.disk_bytes),
            }
            for name, cost in costs.items()
        },
        "seconds": round(sum(cost.seconds for cost in costs.values()), 3),
        "memory_bytes": round(max(cost.memory_bytes for cost in costs.values())),
        "disk_bytes": round(sum(cost.disk_bytes for cost in costs.values())),
        "baseline_adds": {"seconds": round(baseline.seconds, 3), "disk_bytes": round(baseline.disk_bytes)},
        "planned_in_seconds": round(time.perf_counter() - begun, 1),
        "terms": _terms(recipe),
        "missing": [need.as_dict() for need in needs],
        "install": install(needs),
    }
    card = None
    if gpu is not None:
        card, plan["gpu"] = gpu
    price = price_of(recipe, card, plan["seconds"])
    if price is not None:
        plan["price"] = price
    if recipe.student.drafter:
        plan["drafter"] = can_pay(student.parameters / student.teacher_parameters)
    shares = teacher_shares(recipe, text.train)
    if isinstance(recipe.teacher, EndpointTeacher):
        plan["endpoint"] = _endpoint(recipe.teacher, counts, shares.get(OWN, 0.0))
    others = {
        name: _endpoint(config, counts, shares[name])
        for name, config in recipe.learned_from.items()
        if name != OWN and isinstance(config, EndpointTeacher)
    }
    if others:
        plan["endpoints"] = others
    if cluster is not None:
        if isinstance(recipe.teacher, EndpointTeacher):
            raise UsageError(
                "--cluster: the teacher is behind an endpoint, which no worker of ours speeds up.",
                "Plan without --cluster.",
            )
        for key in ("lora", "rounds"):
            if getattr(recipe.distill, key) is not None:
                raise UsageError(
                    f"--cluster: `distill.{key}` trains in one process.",
                    f"Plan without --cluster, or leave `distill.{key}` out.",
                )
        plan["cluster"] = cluster_plan(
            recipe, counts, plan, cluster.worker, cluster.workers, cluster.price, cluster.egress_price
        )
    if recipe.write is not None:
        plan["write"] = _written(recipe)
    if (own := written(recipe, counts, profile)) is not None:
        plan["rounds"] = {
            "count": own.rounds + 1,
            "written_tokens": own.tokens,
            "scored_tokens": own.scored_tokens,
            "learned_rows": own.learned_rows,
            "seconds": round(own.seconds, 3),
        }
    if recipe.teachers:
        plan["teachers"] = _teachers(recipe)
    return plan | _verdict(recipe, plan, counts, profile, runs)


def _lora(recipe: Recipe, student: Planned) -> dict[str, Any]:
    """What is trained of a student with adapters, and bytes of frozen weights and of what training adds to them."""
    from stillroom.models.compute import choose_device, choose_dtype
    from stillroom.training.memory import frozen_bytes, state_bytes

    assert student.adapters is not None
    trained = student.adapters["trained_parameters"]
    dtype = choose_dtype(recipe.distill.precision, choose_device(recipe.compute).type)
    precise = dtype.itemsize == FLOAT_BYTES
    return {
        **student.adapters,
        "share": round(trained / student.parameters, 6),
        "frozen_bytes": frozen_bytes(student.parameters, precise),
        "trained_bytes": trained * state_bytes("plain", precise, accumulates=False),
        "whole_bytes": student.parameters * state_bytes("plain", precise, accumulates=False),
    }


def _notes(recipe: Recipe, text: Text, student: Planned) -> list[str]:
    """What the recipe asks for and does not get, and what is unlikely to be meant."""
    config, length = recipe.distill, text.train.length
    notes = idle_keys(recipe)
    if recipe.corpus.add_bos and text.tokenizer.bos_token_id is None:
        notes.append("`corpus.add_bos` does nothing: the teacher's tokenizer has no beginning-of-text token")
    if not isinstance(recipe.teacher, EndpointTeacher):
        from stillroom.models.load import teacher_config

        most = getattr(teacher_config(recipe.teacher), "max_position_embeddings", None)
        if isinstance(most, int) and length > most:
            notes.append(
                f"`corpus.sequence_length` is {length:,}, and the teacher was made for {most:,} tokens: what it predicts "
                "behind them is no example"
            )
    notes += [
        f"`distill.{key}` is {asked:,}, and one sequence has {length:,}: whole sequences are taken"
        for key in ("batch_tokens", "micro_batch_tokens")
        if isinstance(asked := getattr(config, key), int) and asked < length
    ]
    if config.learning_rate != "auto" and config.learning_rate > HIGH_LEARNING_RATE:
        notes.append(
            f"`distill.learning_rate` is {config.learning_rate:g}: AdamW seldom learns above {HIGH_LEARNING_RATE:g}; `auto` "
            "measures one"
        )
    codec = recipe.capture.codec
    noisy = codec.kind == "threshold" and codec.draws == 1 and codec.tau > COARSE_TAU
    if noisy and config.epochs >= MANY_PASSES and config.cross_entropy_weight < 1:
        notes.append(
            f"`distill.epochs` is {config.epochs}: every pass reads the same draw of the teacher's signals, and its noise is "
            "learned; `capture.codec.tau: 0.008` leaves a fifth of it, for about twice the cache's bytes"
        )
    if isinstance(recipe.student, (ShrinkStudent, DenseStudent)):
        notes += cut_short(recipe.student.importance, text.tokens["train"])
    if isinstance(recipe.student, ShrinkStudent) and student.shape is not None:
        few = few_tokens(recipe.student, text.tokens["train"], student.teacher_shape, student.shape)
        notes += [few] if few else []
    if student.adapters is not None and student.adapters["trained_parameters"] >= student.parameters:
        notes.append(
            f"`distill.lora` trains {student.adapters['trained_parameters']:,} parameters, and the whole student has "
            f"{student.parameters:,}: without it, or with a smaller `rank`, less is trained"
        )
    others = other_tokenizers(recipe) | original_tokenizers(recipe) | student_tokenizer(recipe.student)
    return notes + differences(recipe, others, chats=text.chats)


def _counted(recipe: Recipe, runs: Path, quiet: bool) -> tuple[list[Need], Text, Planned]:
    """What a plan knows without a pilot: packages that are missing, text and student. Errors as in :func:`make_plan`."""
    check_names(recipe.evaluate.measures)
    require_measurable(recipe)
    require_possible(recipe)
    require_rounds(recipe)
    require_device(recipe.compute)
    require_paths(recipe)
    needs = missing_needs(recipe)
    if any(need.stage in ("corpus", "distill") for need in needs):
        # Without the text, or what the pilot trains with, there is nothing to plan with.
        require_needs(needs)
    if not any(need.stage == "evaluate" for need in needs):
        require_askable(recipe)
    check_student(recipe)
    require_turns(recipe)
    text = count_text(recipe, runs, Progress(quiet))
    require_rounds_fit(recipe, text.tokens["train"], text.row_tokens["train"], text.train.length)
    if recipe.distill.rounds is not None:
        from stillroom.training.own_text import require_beginnings

        require_beginnings(text.train, recipe.distill.rounds)
    return needs, text, count_student(recipe, text)


def _gpu(recipe: Recipe, text: Text, student: Planned) -> tuple[Card, dict[str, Any]] | None:
    """The GPU, and what the stages take of it; None where nothing runs there."""
    from stillroom.models.compute import choose_device
    from stillroom.models.load import stored_in_half, teacher_config
    from stillroom.training.stage_cost import measures_entropy

    card = card_of(recipe, choose_device(recipe.compute).type)
    if card is None:
        return None
    teacher = None
    if not isinstance(recipe.teacher, EndpointTeacher):
        half = stored_in_half(recipe.teacher)
        teacher = Model.of(teacher_config(recipe.teacher), student.teacher_parameters, half=half)
    others = {
        name: Model.of(teacher_config(config), config_parameters(config), half=stored_in_half(config))
        for name, config in recipe.learned_from.items()
        if name != OWN and not isinstance(config, EndpointTeacher)
    }
    pupil = Model.of(student.config, student.parameters)
    by = recipe.every_teacher[recipe.write.by] if recipe.write is not None else None
    writer = None
    if by is not None and not isinstance(by, EndpointTeacher):
        writer = Model.of(teacher_config(by), config_parameters(by))
    trained = student.adapters["trained_parameters"] if student.adapters is not None else None
    # Quantizing leaves a model's size as it is.
    quantized = {
        name: Model.of(teacher_config(config), config_parameters(config))
        for name, config in recipe.every_teacher.items()
        if name in recipe.originals
    }
    originals = {
        name: (model, replace(model, half=stored_in_half(recipe.originals[name]))) for name, model in quantized.items()
    }
    tokens, length = text.tokens["train"], text.train.length
    return card, card_plan(
        recipe,
        card,
        teacher,
        pupil,
        tokens,
        length,
        others,
        trained,
        writer,
        originals,
        measures_entropy=measures_entropy(recipe, merges_ids=_merges_ids(student)),
    )


def _merges_ids(student: Planned) -> bool:
    """Whether several of the teacher's ids begin with the same one of the student's."""
    return isinstance(student.vocabulary, VocabularyMap) and student.vocabulary.merges


def _writer_parameters(recipe: Recipe) -> int | None:
    """Parameters of another teacher on this machine that writes text; None where none does."""
    by = recipe.every_teacher[recipe.write.by] if recipe.write is not None and recipe.write.by != OWN else None
    return None if by is None or isinstance(by, EndpointTeacher) else config_parameters(by)


def _written(recipe: Recipe) -> dict[str, Any]:
    """What is written at most, and what an endpoint takes for it by the recipe's prices."""
    from stillroom.teachers.write.material import bound

    assert recipe.write is not None
    most = bound(recipe)
    who = recipe.every_teacher[recipe.write.by]
    price = who.price if isinstance(who, EndpointTeacher) else None
    return {
        "by": recipe.write.by,
        "chunks": most.chunks,
        "texts": most.texts,
        "tokens_in": most.tokens_in,
        "tokens_out": most.tokens_out,
        "cost": (most.tokens_in * price.input + most.tokens_out * price.output) / 1e6 if price is not None else 0.0,
        "cap": price.cap if price is not None else None,
        "judged": "not yet: whether it beats as many repeated tokens of the original text is for a run to show "
        "(docs/written-text.md)",
    }


def _quantized(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """How quantized teachers are stored and what they take, by name; the plan's memory is that of their weights as floats."""
    sizes = {name: stored_size(config) for name, config in recipe.every_teacher.items()}
    return {name: size.as_dict() for name, size in sizes.items() if size is not None}


def _teachers(recipe: Recipe) -> list[dict[str, Any]]:
    """Every teacher of a recipe that has several: what it is called, its size, and what is learned from it."""
    return [
        {
            "called": name,
            "kind": config.kind,
            "parameters": config_parameters(config),
            "learned_from_on": [at for route in recipe.routes if name in route.names for at in route.sources],
            "mixed": sorted({route.label for route in recipe.routes if name in route.names and len(route.names) > 1}),
        }
        for name, config in recipe.every_teacher.items()
    ]


def can_pay(cost_ratio: float) -> dict[str, Any]:
    """What a drafter of a cost per token, as a share of its target's, can bring at best.

    With acceptance a, γ drafts give (1 − a^(γ+1)) / (1 − a) tokens for the time of 1 + γ c (Leviathan, Kalman & Matias 2023,
    arXiv 2211.17192, theorem 3.8, which counts the drafts alone). ``least_acceptance`` is the acceptance from which it pays at
    all, with one draft: c.
    """

    def speed_up(acceptance: float) -> float:
        return max(sum(acceptance**n for n in range(drafts + 1)) / (1 + drafts * cost_ratio) for drafts in range(1, 17))

    return {
        "cost_ratio": round(cost_ratio, 4),
        "least_acceptance": round(min(1.0, cost_ratio), 4),
        "speed_up": {str(acceptance): round(speed_up(acceptance), 3) for acceptance in (0.5, 0.65, 0.8)},
    }


def teacher_shares(recipe: Recipe, train: Sequences) -> dict[str, float]:
    """The share of the training text that each teacher is learned from on, by its name in the recipe.

    Text that is yet to be written is a source of its own, and counts nothing before it is.
    """
    if not recipe.teachers:
        return {OWN: 1.0}
    sources = train.document_sources[train.documents[train.segments >= 0].long()].long()
    known = 1 + max(source for route in recipe.routes for source in route.sources)
    tokens = sources.bincount(minlength=known).tolist()
    shares: dict[str, float] = {}
    for route in recipe.routes:
        for name in route.names:
            shares[name] = shares.get(name, 0.0) + sum(tokens[source] for source in route.sources) / max(1, sum(tokens))
    return shares


def _endpoint(teacher: EndpointTeacher, counts: Counts, share: float) -> dict[str, Any]:
    """What an endpoint is sent, and what that costs by the recipe's prices: its share of all splits is scored once."""
    tokens = math.ceil(share * (counts.train_tokens + counts.validation_tokens + counts.heldout_tokens))
    requests = -(-tokens // counts.sequence_length)
    # llama.cpp is made to write the text: there it is generated tokens that count.
    written = tokens if teacher.server == "llamacpp" else requests
    read = requests if teacher.server == "llamacpp" else tokens
    cost = (read * teacher.price.input + written * teacher.price.output) / 1e6
    return {"requests": requests, "tokens_in": read, "tokens_out": written, "cost": cost, "cap": teacher.price.cap}


def stage_costs(recipe: Recipe, counts: Counts, profile: Profile) -> dict[str, StageCost]:
    """What each stage of a recipe takes, in the order of the stages."""
    return {spec.name: spec.load_cost()(recipe, counts, profile) for spec in stages_of(recipe)}


def _profile(recipe: Recipe, text: Text, student: Planned) -> Profile:
    from stillroom.planning.pilot import run_pilot

    profile = run_pilot(recipe, text.train, student.vocabulary, student.config)
    release_memory()
    return profile


def _terms(recipe: Recipe) -> dict[str, Any] | None:
    from stillroom.terms.gate import verdict_of_recipe

    return verdict_of_recipe(recipe).as_dict()


def _verdict(recipe: Recipe, plan: dict[str, Any], counts: Counts, profile: Profile, runs: Path) -> dict[str, Any]:
    """Whether it fits, what does not, and the nearest recipe that does."""
    import psutil

    limits = recipe.limits
    free = {
        "memory_bytes": limits.memory_bytes or psutil.virtual_memory().available + profile.base_bytes,
        "disk_bytes": limits.disk_bytes or shutil.disk_usage(_existing(runs)).free,
        "seconds": limits.seconds or float("inf"),
    }
    broken = [name for name, value in free.items() if plan[name] > value]
    nearest: dict[str, Any] = {}
    if "memory_bytes" in broken:
        nearest |= _less_memory(recipe, counts, profile, free["memory_bytes"])
    if "disk_bytes" in broken or "seconds" in broken:
        nearest |= _less_text(counts, plan, free)
    terms = plan["terms"]
    if terms is not None and terms["verdict"] == "refused":
        broken.append("terms")
    if plan["missing"]:
        broken.append("packages")
    return {
        "limits": {name: value for name, value in free.items() if value != float("inf")},
        "verdict": "stop" if broken else "go",
        "broken": broken,
        "nearest": nearest,
    }


def _less_memory(recipe: Recipe, counts: Counts, profile: Profile, limit: float) -> dict[str, Any]:
    """A smaller forward pass, where that is enough."""
    from stillroom.training.stage_cost import step_tokens

    tokens = recipe.distill.micro_batch_tokens or step_tokens(recipe, counts)
    while tokens > counts.sequence_length:
        tokens = max(counts.sequence_length, tokens // 2)
        smaller = recipe.model_copy(
            update={"distill": recipe.distill.model_copy(update={"micro_batch_tokens": tokens})}
        )
        costs = stage_costs(smaller, counts, profile)
        if max(cost.memory_bytes for cost in costs.values()) <= limit:
            return {"distill.micro_batch_tokens": tokens}
    return {}


def _less_text(counts: Counts, plan: dict[str, Any], free: dict[str, float]) -> dict[str, Any]:
    """As much text as fits, where less text is enough."""
    from stillroom.corpus.stage_cost import DISK_BYTES_PER_TOKEN

    most = 1.0
    for key, per_text in (
        ("disk_bytes", plan["cache_bytes"] + DISK_BYTES_PER_TOKEN * counts.train_tokens),
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
    # The recipe counts tokens of text.
    tokens = int(most * plan["tokens"]["train"] * 0.98) // counts.sequence_length * counts.sequence_length
    return {"corpus.train_tokens": tokens} if tokens >= counts.sequence_length else {}


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def begin_with_plan(run: Run, quiet: bool = False) -> None:
    """Plan a run, once for each recipe; show the plan and keep it in the run's folder.

    Args:
        run: A run whose corpus is finished.
        quiet: Do not show it. The pilot is then left out where it could not refuse anything: without limits, and with models
            and text that fit any machine.

    Raises:
        OutOfMemory: The recipe's own limit on memory does not suffice.
        DiskFull: Its limit on disk does not.
        RunError: Its limit on time does not.
        StillroomError: What the stages would raise: the recipe cannot be carried out as written.
    """
    path = run.path / KEPT
    if run.checked == run.recipe_digest:
        return
    if path.is_file() and read_json(path).get("recipe_digest") == run.recipe_digest:
        return
    limits = run.recipe.limits
    asked = (limits.memory_bytes, limits.disk_bytes, limits.seconds, limits.gpu_memory_bytes)
    if quiet and all(limit is None for limit in asked):
        _, text, student = _counted(run.recipe, run.path.parent, quiet)
        if _is_tiny(run.recipe, student, text):
            run.checked = run.recipe_digest
            return
    plan = make_plan(run.recipe, run.path.parent)
    if not quiet:
        # The stage `corpus` has told of the text.
        show_plan(plan | {"text_notes": []})
    for name, raised in (("memory_bytes", OutOfMemory), ("disk_bytes", DiskFull), ("seconds", RunError)):
        limit = getattr(limits, name)
        if limit is not None and name in plan["broken"]:
            nearest = ", ".join(f"`{key}: {value}`" for key, value in plan["nearest"].items())
            raise raised(
                f"`limits.{name}` is {limit:,}, and the plan comes to {plan[name]:,}.",
                f"Nearest that fits: {nearest}." if nearest else "Choose a smaller student, or raise the limit.",
            )
    write_json(path, plan | {"recipe_digest": run.recipe_digest})


def _is_tiny(recipe: Recipe, student: Planned, text: Text) -> bool:
    """Whether models and text are so small that no plan of them could ask for more than there is."""
    parameters = student.teacher_parameters + student.parameters
    parameters += sum(
        config_parameters(config) for config in recipe.teachers.values() if not isinstance(config, EndpointTeacher)
    )
    return parameters <= TINY_PARAMETERS and sum(text.row_tokens.values()) <= TINY_TOKENS


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
    quantized = plan.get("quantized", {})
    if OWN in quantized:
        say(f"            {quantized[OWN]['words']}")
    for entry in plan.get("teachers", ()):
        on = ", ".join(map(str, entry["learned_from_on"])) or "none"
        mixed = f" ({', '.join(entry['mixed'])})" if entry["mixed"] else ""
        say(f"            `{entry['called']}`: {entry['parameters']:,} parameters, for source {on}{mixed}")
        if entry["called"] in quantized and entry["called"] != OWN:
            say(f"            {quantized[entry['called']]['words']}")
    most = "" if plan["student_parameters_exact"] else "at most "
    say(f"  student   {most}{student:,} parameters, {student / teacher:.0%} of the teacher's")
    if plan["student_shape"]:
        say(f"            {plan['student_shape']}")
    if plan.get("student_note"):
        say(f"            {plan['student_note']}")
    if "drafter" in plan:
        found = plan["drafter"]
        speeds = ", ".join(f"{speed:.2f} × at {float(share):.0%}" for share, speed in found["speed_up"].items())
        say(f"            as a drafter it costs {found['cost_ratio']:.2f} of the teacher per token: {speeds} accepted")
        if max(found["speed_up"].values()) < 1.2:
            say("            that hardly pays: a drafter wants to be a tenth of its teacher or less")
    if plan["file_bytes"]:
        say("  files     " + ", ".join(f"{kind} {size / 1e6:,.1f} MB" for kind, size in plan["file_bytes"].items()))
    say("  tokens    " + ", ".join(f"{value:,} {name}" for name, value in plan["tokens"].items()))
    for note in plan.get("text_notes", ()):
        say(f"            {note}")
    say(
        f"  training  {plan['steps']:,} steps of {plan['step_tokens']:,} tokens, {plan['training_operations']:.1e} operations; "
        f"learning rate {_FROM[plan['learning_rate_from']]}"
    )
    if "lora" in plan:
        from stillroom.training.adapters import in_words

        lora = plan["lora"]
        say(f"            {in_words(lora, lora['share'])}")
        held = lora["frozen_bytes"] + lora["trained_bytes"]
        say(
            f"            weights, gradients and optimizer state: {held / 1e9:,.2f} GB, "
            f"of it {lora['trained_bytes'] / 1e9:,.2f} GB for what is trained; whole {lora['whole_bytes'] / 1e9:,.2f} GB"
        )
    for note in plan.get("notes", ()):
        say(f"            {note}")
    if "write" in plan:
        write = plan["write"]
        price = f", cost at most {write['cost']:.4g}" if write["cost"] else ""
        say(
            f"  write     at most {write['texts']:,} texts about {write['chunks']:,} chunks by `{write['by']}`: "
            f"at most {write['tokens_in']:,} tokens in (one per byte) and {write['tokens_out']:,} out{price}; the tokens above "
            "are without them"
        )
    if "rounds" in plan:
        own = plan["rounds"]
        say(
            f"  rounds    {own['count']}: in the later ones the student writes about {own['written_tokens']:,} tokens, and the "
            f"teacher reads {own['scored_tokens']:,}; they take the place of {own['learned_rows']:,} sequences of the corpus "
            f"and add about {clock(own['seconds'])}"
        )
    asked_of = {"": plan["endpoint"]} if "endpoint" in plan else {}
    for name, asked in (asked_of | plan.get("endpoints", {})).items():
        price = f", cost about {asked['cost']:.4g}" if asked["cost"] else ""
        price += f" of at most {asked['cap']:g}" if asked["cap"] is not None else ""
        say(
            f"  endpoint  about {asked['requests']:,} requests or more, {asked['tokens_in']:,} tokens in, "
            f"{asked['tokens_out']:,} out{price}; its speed is not known{f' (`{name}`)' if name else ''}"
        )
    limits = plan["limits"]
    say(
        f"  cache     {plan['cache_bytes'] / 1e6:,.1f} MB, {plan['bytes_per_position']:.1f} bytes per position; "
        f"disk {plan['disk_bytes'] / 1e9:.1f} of {limits['disk_bytes'] / 1e9:,.1f} GB"
    )
    say(f"  memory    {plan['memory_bytes'] / 1e9:.1f} of {limits['memory_bytes'] / 1e9:.1f} GB")
    if "gpu" in plan:
        _show_gpu(plan["gpu"])
    for name, stage in plan["stages"].items():
        say(f"    {name:<9} {clock(stage['seconds']):>8}   {stage['memory_bytes'] / 1e9:.1f} GB")
    added = plan["baseline_adds"]["seconds"]
    say(
        f"  time      about {clock(plan['seconds'])} on this machine as it is now"
        + (f"; the baseline is {clock(added)} of it" if added else "")
    )
    if "cluster" in plan:
        show_cluster(plan["cluster"])
    if "price" in plan:
        low, high = plan["price"]["low"], plan["price"]["high"]
        sums = f"{low:,.2f}" if low == high else f"{low:,.2f} to {high:,.2f}"
        say(f"  price     about {sums} ({plan['price']['source']})")
    terms = plan["terms"]
    if terms is not None:
        say(f"  terms     {terms['verdict'].replace('_', ' ')}")
        if terms["verdict"] == "refused":
            for reason in terms["reasons"]:
                say(f"            {reason}")
    for need in plan["missing"]:
        say(f"  missing   {', '.join(need['packages'])} (`{need['key']}`)")
    if plan["missing"]:
        say(f"  install   {plan['install']}")
    if plan["verdict"] == "go":
        say("  result    go")
        return
    limits = {
        "memory_bytes": "memory",
        "disk_bytes": "disk",
        "seconds": "time",
        "terms": "terms",
        "packages": "packages",
    }
    say(f"  result    stop: {', '.join(limits[name] for name in plan['broken'])}")
    if plan["nearest"]:
        say("  nearest   " + ", ".join(f"{key}: {value}" for key, value in plan["nearest"].items()))


def _show_gpu(gpu: dict[str, Any]) -> None:
    """What a plan says of the GPU."""
    stages = ", ".join(f"{name} {needed / 1e9:.1f}" for name, needed in gpu["stages"].items())
    say(f"  GPU       {gpu['memory_bytes'] / 1e9:.1f} GB{' of ' + gpu['card'] if gpu['card'] else ''}: {stages} GB")
    state = "float32 throughout" if gpu["state"] == "plain" else f"{gpu['state']} bytes per parameter"
    again = "gradient checkpointing" if gpu["gradient_checkpointing"] else "no gradient checkpointing"
    for name in gpu.get("layers_in_host_memory", ()):
        say(
            f"            larger than the GPU: the layers of {name} stay in the host's memory, carried over one at a time"
        )
    say(f"            training: {state}, {again}, {gpu['loss_chunk']:,} positions a chunk of the loss")
