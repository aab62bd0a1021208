"""Keys of a recipe that change nothing beside its other keys: the plan names each, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.core.gguf_types import GGUF_TYPES
from stillroom.core.store import is_url
from stillroom.evaluation.registry import require_metrics
from stillroom.recipe.corpus import DatasetSource, JsonlSource, TextSource
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.section import Section
from stillroom.recipe.student import DenseStudent, ExistingStudent, ShrinkStudent, Target
from stillroom.recipe.teacher import EndpointTeacher, HuggingFaceTeacher


@dataclass(frozen=True)
class Rule:
    """Keys that do nothing in some recipes.

    Attributes:
        keys: Dotted keys.
        holds: Whether they do nothing in a recipe.
        why: The reason, as it follows a colon.
    """

    keys: tuple[str, ...]
    holds: Callable[[Recipe], bool]
    why: str


def idle_keys(recipe: Recipe) -> list[str]:
    """What a recipe asks for and what nothing reads, a sentence each. A key that has its default is not among them."""
    found = [
        _sentence(written, rule.why)
        for rule in RULES
        if (written := [key for key in rule.keys if _written(recipe, key)]) and rule.holds(recipe)
    ]
    return [
        *found,
        *_measured_by_nothing(recipe),
        *_bounds_of_no_file(recipe),
        *_revisions_of_folders(recipe),
        *_patterns_of_files(recipe),
    ]


def _sentence(keys: Iterable[str], why: str) -> str:
    named = [f"`{key}`" for key in keys]
    return f"{' and '.join(named)} {'do' if len(named) > 1 else 'does'} nothing: {why}"


def _written(recipe: Recipe, key: str) -> bool:
    """Whether a key of a recipe has another value than its default."""
    at: Any = recipe
    *above, last = key.split(".")
    for part in above:
        at = getattr(at, part, None)
    field = type(at).model_fields.get(last) if isinstance(at, Section) else None
    return field is not None and bool(getattr(at, last) != field.get_default(call_default_factory=True))


def _target(recipe: Recipe) -> Target | None:
    return recipe.student.target if isinstance(recipe.student, ShrinkStudent) else None


def _counts_parameters_alone(recipe: Recipe) -> bool:
    target = _target(recipe)
    if target is None:
        return False
    limits = (target.file_bytes, target.memory_bytes, target.decode_tokens_per_second, target.device)
    return all(limit is None for limit in limits)


def _needs_no_context(recipe: Recipe) -> bool:
    target = _target(recipe)
    if target is None:
        return False
    return all(limit is None for limit in (target.memory_bytes, target.decode_tokens_per_second, target.device))


def _names_no_device(recipe: Recipe) -> bool:
    target = _target(recipe)
    return target is not None and target.device is None


def _axes_are_given(recipe: Recipe) -> bool:
    target = _target(recipe)
    return target is not None and all(getattr(recipe.student, axis) is not None for axis in target.axes)


def _own_tokenizer(recipe: Recipe) -> bool:
    return recipe.student_with_own_tokenizer is not None


def _keeps_all_ids(recipe: Recipe) -> bool:
    return not isinstance(recipe.student, ExistingStudent) and recipe.student.vocabulary.keep == "all"


def _gguf_types(recipe: Recipe) -> set[str]:
    """Types that are written, or may be chosen."""
    export = recipe.export
    return {*export.gguf, *(export.choose.among if export.choose is not None else ())}


def _only_endpoints(recipe: Recipe) -> bool:
    return all(isinstance(teacher, EndpointTeacher) for teacher in recipe.learned_from.values())


RULES: tuple[Rule, ...] = (
    Rule(("distill.decay_share",), lambda recipe: recipe.distill.schedule != "wsd", "only `schedule: wsd` reads it"),
    Rule(
        ("distill.final_learning_rate_share",),
        lambda recipe: recipe.distill.schedule == "constant",
        "with `schedule: constant` the learning rate does not fall",
    ),
    Rule(
        ("distill.chunk_weight", "distill.chunk_temperature"),
        lambda recipe: not _own_tokenizer(recipe),
        "only students with `tokenizer: own` have chunks",
    ),
    Rule(
        ("distill.objective",),
        lambda recipe: recipe.distill.cross_entropy_weight == 1,
        "with `cross_entropy_weight: 1` the loss is cross-entropy on the text alone",
    ),
    Rule(
        ("student.vocabulary.size", "student.vocabulary.multiple_of"),
        _keeps_all_ids,
        "the whole vocabulary is kept (`keep: all`, or `drafter: true`)",
    ),
    Rule(
        ("student.importance.path",),
        lambda recipe: isinstance(recipe.student, DenseStudent),
        "what is measured of experts for a dense student is not kept",
    ),
    Rule(
        ("student.target.quantisation",),
        _counts_parameters_alone,
        "the target limits parameters, whatever type they are stored in; name `file_bytes`, `memory_bytes` or `device`",
    ),
    Rule(
        ("student.target.context",),
        _needs_no_context,
        "no limit of the target counts a context; name `memory_bytes`, `decode_tokens_per_second` or `device`",
    ),
    Rule(("student.target.profiles",), _names_no_device, "the target names no `device`"),
    Rule(
        ("student.target.axes",), _axes_are_given, "the sizes of all of them are given, and nothing is left to choose"
    ),
    Rule(
        ("capture.batch_tokens",),
        _only_endpoints,
        "a teacher behind an endpoint is asked sequence by sequence (`teacher.concurrency` at a time)",
    ),
    Rule(
        ("capture.seed",),
        lambda recipe: recipe.capture.codec.kind != "threshold",
        "only the codec `threshold` draws at random",
    ),
    Rule(
        ("capture.shard_tokens",),
        lambda recipe: recipe.capture.path is not None and is_url(recipe.capture.path),
        "in an object store a shard is a unit (`unit_tokens`)",
    ),
    Rule(
        ("write.support",),
        lambda recipe: recipe.write is not None and recipe.write.forms == ("rephrase",),
        "only answers are held against it, and `forms` asks for none",
    ),
    Rule(
        ("export.choose.profiles",),
        lambda recipe: recipe.export.choose is not None and recipe.export.choose.device is None,
        "`export.choose` names no `device`",
    ),
    Rule(
        ("export.recover", "export.importance_tokens"),
        lambda recipe: not any(GGUF_TYPES[kind].importance for kind in _gguf_types(recipe)),
        "no type under Q8_0 is written; name one in `export.gguf`",
    ),
    Rule(
        ("export.check_tokens",),
        lambda recipe: not recipe.export.writes_gguf and not recipe.export.onnx,
        "no file is written",
    ),
    Rule(
        ("chat.prompt", "chat.max_tokens"),
        lambda recipe: recipe.chat.prompt is not None and not recipe.export.writes_gguf,
        "a GGUF file answers, and none is written",
    ),
    Rule(("chat.max_tokens",), lambda recipe: recipe.chat.prompt is None, "nothing is asked (`chat.prompt`)"),
)


def _measured_by_nothing(recipe: Recipe) -> list[str]:
    """Settings of metrics that are not asked for."""
    config = recipe.evaluate
    read = {key for metric in require_metrics(config.measures) for key in metric.settings}
    idle = [
        name
        for name in type(config).model_fields
        if isinstance(getattr(config, name), Section) and name not in read and _written(recipe, f"evaluate.{name}")
    ]
    return [
        _sentence(
            [f"evaluate.{name}"],
            f"`evaluate.measures` has no `{name}`; name it there, or measure it later: stillroom evaluate RUN --only {name}",
        )
        for name in idle
    ]


def _bounds_of_no_file(recipe: Recipe) -> list[str]:
    """Limits of GGUF types that are not written."""
    types = _gguf_types(recipe)
    return [
        _sentence([f"export.max_kl.{kind}"], f"no {kind} file is written; name it in `export.gguf`")
        for kind, limit in recipe.export.max_kl.items()
        if kind not in types and limit != GGUF_TYPES[kind].max_kl
    ]


def _revisions_of_folders(recipe: Recipe) -> list[str]:
    """Commits, and other parts of a repository on the hub, that are asked of a folder here."""
    named: list[tuple[str, str, str | None]] = []
    for name, teacher in recipe.every_teacher.items():
        key = f"teachers.{name}" if name in recipe.teachers else name
        if isinstance(teacher, HuggingFaceTeacher):
            named.append((f"{key}.revision", teacher.name, teacher.revision))
        elif isinstance(teacher, EndpointTeacher):
            named.append((f"{key}.revision", teacher.tokenizer, teacher.revision))
    if isinstance(recipe.student, ExistingStudent):
        named.append(("student.revision", recipe.student.name, recipe.student.revision))
    for index, source in enumerate(recipe.corpus.sources):
        if isinstance(source, DatasetSource):
            named.append((f"corpus.sources.{index}.revision", source.name, source.revision))
    return [
        _sentence([key], f"{where} is a folder here, and is taken as it is; a commit is one of a repository on the hub")
        for key, where, revision in named
        if revision is not None and Path(where).is_dir()
    ]


def _patterns_of_files(recipe: Recipe) -> list[str]:
    """Patterns that choose among the files of a folder, where one file is named."""
    return [
        _sentence([f"corpus.sources.{index}.pattern"], f"{source.path} is a file, and is read whatever it is called")
        for index, source in enumerate(recipe.corpus.sources)
        if isinstance(source, (TextSource, JsonlSource))
        and source.pattern != type(source).model_fields["pattern"].default
        and source.path.is_file()
    ]
