"""The table of stages: their order, where their functions and their costs are, and what each depends on."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core import files
from stillroom.core.errors import CorpusError, RunError
from stillroom.core.progress import Progress
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.section import for_digest
from stillroom.recipe.student import ShrinkStudent
from stillroom.runs.costs import Counts, Profile, StageCost
from stillroom.runs.known import SourceMissing, carried, made_from, moved_paths
from stillroom.runs.run import FILES_WRITTEN, LICENCE, Run, Stage

if TYPE_CHECKING:
    from stillroom.models.load import AnyTeacher

StageFunction = Callable[[Run, Stage, Progress], None]
CostFunction = Callable[[Recipe, Counts, Profile], StageCost]

BY_CONTENT = (
    ("corpus", "sources"),
    ("teacher",),
    ("teachers",),
    ("capture", "path"),
    ("student", "name"),
    ("student", "importance", "path"),
    ("student", "target", "profiles"),
    ("export", "choose", "profiles"),
    ("evaluate",),
)
"""Keys of a recipe whose paths are compared by what is there, besides by name: see :func:`inputs_of`."""
CHANGES_NOTHING: Mapping[str, tuple[tuple[str, ...], ...]] = {
    # It takes weights, config and tokenizer, in float32: the digest of their files is an input of its own.
    "shrink": tuple(("teacher", key) for key in (
        "dtype", "licence", "base_url", "server", "key_env", "top", "service", "sends_text", "concurrency", "attempts",
        "timeout_seconds", "check_every", "price",
    )),
    "distill": (("distill", "checkpoint_seconds"),),
    "baseline": (("distill", "checkpoint_seconds"),),
}  # fmt: skip
"""Keys of a stage's sections that change nothing in its result: it stays finished, and goes on, with another value of them."""
CACHE = "cache"
"""The folder of the teacher cache inside the stage `capture`."""
TEXTS = "texts"
"""The folder inside the stage `write` that has every text as it came."""
WRITTEN, WRITTEN_RECORD = "written.jsonl", "written.json"
"""In the folder of the stage `write`: rows for the corpus, and what was written, kept and left out."""
MORE_TEACHERS = "teachers"
"""Inside the folder of the cache: those of a recipe's other teachers."""
TEACHERS = "teachers.json"
"""In the folder of the stage `capture`, with several teachers: what a run keeps of each, the recipe's own first."""
ROUTES = "routes.json"
"""Beside it, with several teachers: where the signals of each are, and for which sources."""


@dataclass(frozen=True)
class StageSpec:
    """A stage: where its function is, what it costs, and what its result depends on.

    Attributes:
        name: Name of the stage and of its folder.
        function: ``module:function`` inside ``stillroom``, imported when it is needed.
        cost: ``module:function`` that computes what the stage takes, likewise.
        sections: Parts of the recipe that it reads.
        needs: Stages whose output it reads.
        teacher: Whether it opens the teacher.
        gated: Whether it uses the teacher, so that the terms have to allow it.
        again: What is said when it is done again.
        version: Number of the method. A change of it, and of nothing else in a release, has finished stages done again.
        beside: Outputs that no other stage reads.
        keeps: Folders inside the stage's that are kept when it is done again for other inputs: the stage itself sees to it that
            what is there fits.
    """

    name: str
    function: str
    cost: str
    sections: tuple[str, ...]
    needs: tuple[str, ...] = ()
    teacher: bool = False
    gated: bool = False
    keeps: tuple[str, ...] = ()
    again: str = "doing it again"
    version: int = 1
    beside: tuple[str, ...] = ()

    def load(self) -> StageFunction:
        """Import the function."""
        function: StageFunction = _imported(self.function)
        return function

    def load_cost(self) -> CostFunction:
        """Import the function that computes what the stage takes."""
        function: CostFunction = _imported(self.cost)
        return function


def _imported(where: str) -> Any:
    """What ``module:name`` inside ``stillroom`` names."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(f"stillroom.{module}"), name)


STABLE = tuple(
    f"stable/{name}" for name in ("state.safetensors", "state.json", "best.safetensors", "sweep.json", "begin.json")
)
"""What a longer training of the same student begins with; see :mod:`stillroom.training.extension`."""
STAGES: tuple[StageSpec, ...] = (
    StageSpec(
        "write",
        "teachers.write.stage:run_stage",
        "teachers.write.stage_cost:stage_cost",
        ("corpus", "write", "compute"),
        gated=True,
        # Each text is addressed by all that it depends on.
        keeps=(TEXTS,),
        again="writing what is new",
    ),
    StageSpec(
        "corpus",
        "corpus.stage:run_stage",
        "corpus.stage_cost:stage_cost",
        ("corpus",),
        ("write",),
        teacher=True,
        again="reading again",
        beside=("ledger.json",),
    ),
    StageSpec(
        "capture",
        "teachers.stage:run_stage",
        "teachers.stage_cost:stage_cost",
        ("teacher", "capture", "compute"),
        ("corpus",),
        teacher=True,
        gated=True,
        # Signals are addressed by content: those of pieces that are still in the corpus stay right.
        keeps=(CACHE,),
        again="capturing what is new",
    ),
    StageSpec(
        "shrink",
        "students.stage:run_stage",
        "students.stage_cost:stage_cost",
        ("teacher", "student", "compute"),
        ("corpus",),
        teacher=True,
        gated=True,
        again="pruning again",
    ),
    StageSpec(
        "distill",
        "training.stage:run_distill",
        "training.stage_cost:distill_cost",
        ("distill", "compute"),
        ("corpus", "capture", "shrink"),
        gated=True,
        again="training again",
        beside=STABLE,
    ),
    StageSpec(
        "baseline",
        "training.stage:run_baseline",
        "training.stage_cost:stage_cost",
        ("distill", "compute"),
        ("corpus", "capture", "shrink"),
        gated=True,
        again="training again",
        beside=STABLE,
    ),
    StageSpec(
        "export",
        "formats.stage:run_stage",
        "formats.stage_cost:stage_cost",
        ("export", "compute"),
        ("corpus", "shrink", "distill"),
        again="exporting again",
    ),
    StageSpec(
        "evaluate",
        "evaluation.stage:run_stage",
        "evaluation.stage_cost:stage_cost",
        ("teacher", "evaluate", "compute"),
        ("corpus", "shrink", "distill", "baseline"),
        teacher=True,
        again="measuring again",
    ),
)


TAUGHT_BY_SEVERAL = ("capture", "evaluate")
"""Stages that open every teacher of a recipe that has several; the others know the recipe's own alone."""


def stages_of(recipe: Recipe) -> list[StageSpec]:
    """The stages that a recipe asks for, in order."""
    return [spec for spec in STAGES if _asked(recipe, spec.name)]


def _asked(recipe: Recipe, name: str) -> bool:
    """Whether a recipe asks for a stage."""
    return {"baseline": recipe.baseline, "write": recipe.write is not None}.get(name, True)


def with_needs(specs: list[StageSpec], name: str) -> list[StageSpec]:
    """A stage and everything that it needs, in order."""
    by_name = {spec.name: spec for spec in specs}
    wanted = {name}
    queue = [name]
    while queue:
        for need in by_name[queue.pop()].needs:
            if need in by_name and need not in wanted:
                wanted.add(need)
                queue.append(need)
    return [spec for spec in specs if spec.name in wanted]


def unfinished(made: Run) -> list[tuple[str, str | None]]:
    """Stages that a recipe asks for and that are not finished, in order; with the name of another stage, where they were
    finished with an earlier result of that one.
    """
    records = {spec.name: made.stage(spec.name).record for spec in stages_of(made.recipe)}
    found: list[tuple[str, str | None]] = []
    for spec in stages_of(made.recipe):
        record = records[spec.name]
        if record is None:
            found.append((spec.name, None))
            continue
        # A record names what it needed when it was written; an earlier version's may name less.
        needed = {need: record["inputs"].get(need) for need in spec.needs if records.get(need) is not None}
        other = [need for need, digest in needed.items() if digest not in (None, made.stage(need).output_digest)]
        found += [(spec.name, other[0])] if other else []
    return found


def require_finished(made: Run) -> None:
    """Refuse to say of a run what belongs to different results of it, or what none of its stages wrote.

    Data that is gone is left to who reads it: what a stage keeps for others can be large, and may be deleted.

    Raises:
        RunError: A stage is not finished, or was finished with an earlier result of another one, or a file of it was
            changed since.
    """
    for name, other in unfinished(made):
        if other is None:
            raise not_finished(made, name)
        raise _of_earlier(made, name, other)
    _require_unchanged(made, stages_of(made.recipe))


def require_one_result(made: Run, name: str) -> None:
    """Refuse a stage that was done with an earlier result of one that it needs, directly or not: a student whose vocabulary
    was chosen anew since would be measured by another one's. Nor may a file of one of them have been changed since.

    Raises:
        RunError: It was.
    """
    chain = with_needs(stages_of(made.recipe), name)
    names = {spec.name for spec in chain}
    for found, other in unfinished(made):
        if found in names and other is not None:
            raise _of_earlier(made, found, other)
    _require_unchanged(made, chain)


def _require_unchanged(made: Run, specs: Sequence[StageSpec]) -> None:
    """Refuse files that are not what the stages wrote. Data that is gone is left to who reads it."""
    for spec in specs:
        for file, what in made.stage(spec.name).damaged(data=False).items():
            raise RunError(
                f"{made.path}: a file of the stage `{spec.name}` is not what the stage wrote: {file} {what}.",
                f"Put it back as it was, or do the stage again: stillroom run {made.path}",
            )
    made.known.save()


def not_finished(made: Run, name: str) -> RunError:
    """The error of a stage that was never finished, or was begun anew."""
    return RunError(f"{made.path}: the stage `{name}` is not finished.", f"Finish it: stillroom run {made.path}")


def _of_earlier(made: Run, name: str, other: str) -> RunError:
    return RunError(
        f"{made.path}: the stage `{name}` was done with an earlier result of `{other}`.",
        f"Do it again: stillroom run {made.path}",
    )


def sections_of(made: Run, spec: StageSpec) -> dict[str, Any]:
    """The parts of a run's recipe that a stage reads, as digests and records have them."""
    found = {name: for_digest(getattr(made.recipe, name)) for name in spec.sections}
    if made.recipe.teachers and spec.name in TAUGHT_BY_SEVERAL:
        found["teachers"] = for_digest(made.recipe.teachers)
        found["routes"] = [[list(map(list, route.weights)), list(route.sources)] for route in made.recipe.routes]
    if spec.name != "evaluate":
        # What a quantized teacher was made from changes nothing in what is learned from it.
        for teacher in (found.get("teacher", {}), *found.get("teachers", {}).values()):
            teacher.pop("original", None)
    if spec.name == "baseline":
        # It is trained on the corpus alone, whatever the student writes.
        found["distill"].pop("rounds", None)
    if "distill" in found:
        # Where checkpoints are copied to changes nothing in what is trained.
        found["distill"].pop("checkpoint_copy", None)
    return found | {"seed": made.seed_of(spec.name)}


def _solves_width_for_no_file(recipe: Recipe) -> bool:
    """Whether a target decides the width of a student of which no GGUF file is written."""
    student = recipe.student
    if recipe.export.writes_gguf or not isinstance(student, ShrinkStudent) or student.target is None:
        return False
    return "hidden_size" in student.target.axes and student.hidden_size is None


def recipe_digest(made: Run, spec: StageSpec) -> str:
    """SHA-256 of the parts of a run's recipe that a stage reads."""
    return files.digest_json(sections_of(made, spec))


def made_from_of(made: Run, spec: StageSpec) -> dict[str, str]:
    """SHA-256 of each file outside the run that a stage reads, besides the teacher's.

    Raises:
        CorpusError: A source is not there.
    """
    try:
        return made_from(made.recipe, spec.name, made.known)
    except SourceMissing as error:
        raise CorpusError(
            f"{error}: no such file or folder.", "Check `path`; relative paths start at the recipe's folder."
        ) from None


def made_from_if_there(made: Run, spec: StageSpec) -> dict[str, str]:
    """As :func:`made_from_of`; empty where a source is not there."""
    try:
        return made_from_of(made, spec)
    except CorpusError:
        return {}


def inputs_of(made: Run, spec: StageSpec) -> dict[str, str]:
    """Digests of everything that a stage's result depends on.

    Raises:
        CorpusError: A source is not there, and the stage was not finished by a release that did not look at it.
    """
    inputs = {"recipe": recipe_digest(made, spec)}
    if spec.version > 1:
        inputs["method"] = str(spec.version)
    record = made.stage(spec.name).record
    earlier = record if record is not None else made.stage(spec.name).begun
    try:
        found = made_from_of(made, spec)
    except CorpusError:
        if record is None or "sections" in record:
            raise
        found = {}
    if found:
        inputs["files"] = files.digest_json(found)
    held = {} if earlier is None else earlier["inputs"]
    # Records of 0.1.0, which have no sections, were written before the files of slow tokenizers counted.
    old = held if record is not None and "sections" not in record else {}
    if earlier is not None and "sections" in earlier and _same_result(made, spec, earlier, inputs, found):
        # Everything that its result depends on is the same, perhaps in another place: it is still that of these inputs.
        inputs |= {key: held[key] for key in ("recipe", "files") if key in held}
    if spec.teacher:
        inputs["teacher"] = _teacher(made, made.recipe.teacher, old.get("teacher"), written=False)
        if spec.name in TAUGHT_BY_SEVERAL:
            for name, config in made.recipe.teachers.items():
                inputs[f"teachers.{name}"] = _teacher(made, config, old.get(f"teachers.{name}"), written=True)
    if spec.name == "evaluate":
        for name, config in made.recipe.originals.items():
            inputs[f"{name}.original"] = _teacher(made, config, None, written=False)
    if spec.name == "write" and made.recipe.write is not None:
        who = made.recipe.every_teacher[made.recipe.write.by]
        inputs["teacher"] = _teacher(made, who, old.get("teacher"), written=True)
        if made.recipe.write.by != "teacher" and held != inputs:
            # Control tokens of the recipe's own teacher are left out of what is written. What was finished before this was
            # looked at stays finished.
            inputs["teacher.tokenizer"] = _tokenizer(made, made.recipe.teacher)
    for need in spec.needs:
        if _asked(made.recipe, need):
            inputs[need] = made.stage(need).output_digest
    if spec.name == "shrink" and _solves_width_for_no_file(made.recipe):
        # Widths that the runtime does not load are among its choices, and are none once a file is written.
        inputs[FILES_WRITTEN] = "none"
    if spec.name == "export" and (record is None or LICENCE in held):
        # What earlier versions exported was exported again with each student, which a licence made a new one of.
        inputs[LICENCE] = files.digest_json(_licences(made))
    return inputs


def _licences(made: Run) -> list[Any]:
    """The licences that a run keeps of its teachers, which are written into files."""
    capture = made.stage("capture").path
    for name in (TEACHERS, "teacher.json"):
        if (capture / name).is_file():
            found = files.read_json(capture / name)
            return [record.get("licence") for record in (found if isinstance(found, list) else [found])]
    return []


def _teacher(made: Run, config: AnyTeacher, held: str | None, written: bool) -> str:
    """Digest of a teacher's files.

    Args:
        made: The run.
        config: The teacher's section.
        held: What a record says that was written before the files of slow tokenizers counted: it is kept where only they
            differ.
        written: Whether the stage holds the digest of the whole identity, not the identity's own.
    """
    from stillroom.models.load import teacher_identity

    def digest(slow: bool) -> str:
        identity = teacher_identity(config, made.known.digest, slow=slow)
        return files.digest_json(identity) if written else identity["teacher"]

    now = digest(slow=True)
    return held if held is not None and held != now and held == digest(slow=False) else now


def _tokenizer(made: Run, config: AnyTeacher) -> str:
    """Digest of a teacher's files without its weights: of a GGUF file, which has both, all of it."""
    from stillroom.models.load import teacher_identity

    def digest(path: Path) -> str:
        return "" if path.suffix == ".safetensors" else made.known.digest(path)

    return files.digest_json(teacher_identity(config, digest))


def _same_result(
    made: Run, spec: StageSpec, earlier: Mapping[str, Any], inputs: Mapping[str, str], found: Mapping[str, str]
) -> bool:
    """Whether a stage that was finished or begun with another recipe has the same result with this one.

    Keys that change nothing (:data:`CHANGES_NOTHING`) may differ. So may paths, where the run was moved together with what it
    reads and what is there is compared by content: files of sources and tests by what the run kept of them, a teacher by its
    digest, a cache by its own. Nothing else of the recipe may.
    """
    held = earlier["inputs"]
    if held.get("recipe") == inputs["recipe"] and held.get("files") == inputs.get("files"):
        return False
    idle = CHANGES_NOTHING.get(spec.name, ())
    pairs = moved_paths(without(earlier["sections"], idle), without(sections_of(made, spec), idle), BY_CONTENT)
    if pairs is None:
        return False
    if not pairs:
        return bool(held.get("files") == inputs.get("files"))
    before = made.known.made_from.get(spec.name, {})
    kept = files.digest_json(before) if before else None
    return kept == held.get("files") and carried(before, pairs) == found


def without(sections: Mapping[str, Any], keys: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    """Sections of a recipe without some keys of theirs, each given by the names that lead to it."""
    return {
        name: without(value, [key[1:] for key in keys if key[0] == name and len(key) > 1])
        if isinstance(value, Mapping)
        else value
        for name, value in sections.items()
        if (name,) not in keys
    }
