"""A recipe: one closed tree of settings, read from YAML."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from stillroom.core.tracking import Tracker
from stillroom.recipe.capture import CaptureConfig
from stillroom.recipe.compute import ComputeConfig
from stillroom.recipe.corpus import CorpusConfig
from stillroom.recipe.evaluation import EvaluateConfig
from stillroom.recipe.export import ChatConfig, ExportConfig
from stillroom.recipe.routes import OWN, Route, routes_of
from stillroom.recipe.section import SINCE, Section
from stillroom.recipe.student import ExistingStudent, FreshStudent, ShrinkStudent, Student
from stillroom.recipe.teacher import HuggingFaceTeacher, Teacher
from stillroom.recipe.terms import TermsConfig
from stillroom.recipe.training import DistillConfig
from stillroom.recipe.write import WriteConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""What a teacher may be called."""
TAKEN = (OWN, "student", "text")
"""What none may be called: a decision under `terms` that says it is about something else."""


class LimitsConfig(Section):
    """What a run may take at most. The plan is held against it, and so is every stage before it begins."""

    memory_bytes: int | None = Field(default=None, gt=0)
    """Memory; without it, what is free."""
    disk_bytes: int | None = Field(default=None, gt=0)
    """Disk; without it, what is free."""
    seconds: float | None = Field(default=None, gt=0)
    """Time, as planned; without it, any."""
    gpu_memory_bytes: int | None = Field(default=None, gt=0, json_schema_extra={SINCE: "0.2.0"})
    """Memory of the GPU; without it, what is free on the one that is here. The plan refuses what does not fit, by stage."""
    price_per_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False, json_schema_extra={SINCE: "0.2.0"})
    """What an hour of the machine costs, in any currency: the plan then says what the run costs. Without it, the plan knows
    the price of some GPUs."""


class Recipe(Section):
    """One run, whole: from text and a teacher to a student that answers."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the run and of its folder."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seed of everything random. Without it, the order of training and the initial weights of a fresh student come from 256
    secret random bits of the run's own, and everything else from the seed 0. An explicit seed makes the run repeatable by
    anybody; its order of training and its initial weights then prove nothing about copies (`docs/guard.md`)."""
    compute: ComputeConfig = ComputeConfig()
    """Where and how numbers are computed."""
    limits: LimitsConfig = LimitsConfig()
    """What it may take at most."""
    corpus: CorpusConfig
    """Text."""
    write: WriteConfig | None = Field(default=None, json_schema_extra={SINCE: "0.2.0"})
    """Text that a teacher writes about the training documents, to be learned beside them; without it, nothing is written
    (docs/written-text.md)."""
    teacher: Teacher
    """The model to learn from."""
    teachers: dict[str, Teacher] = Field(default={}, json_schema_extra={SINCE: "0.2.0"})
    """More models to learn from, by names of your own; a source of the corpus names the one for its text as its ``teacher``.
    All have the tokenizer of ``teacher``, from which the student is pruned (docs/several-teachers.md)."""
    capture: CaptureConfig = CaptureConfig()
    """How the teacher's signal is stored."""
    student: Student = ShrinkStudent()
    """The model to make."""
    distill: DistillConfig = DistillConfig()
    """How it is trained."""
    baseline: bool = True
    """Train the same start on the same tokens with plain cross-entropy too, so that the gain can be told."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How it is measured."""
    export: ExportConfig = ExportConfig()
    """Files for devices."""
    chat: ChatConfig = ChatConfig()
    """The question that the run ends with."""
    track: tuple[Tracker, ...] = ()
    """Where metrics go besides ``events.jsonl``, each an installed package: ``tensorboard``, ``wandb``, ``mlflow``."""
    terms: TermsConfig = TermsConfig()
    """What the operator adds to the packaged table of terms."""

    @model_validator(mode="after")
    def _comparable(self) -> Recipe:
        if self.student_with_own_tokenizer is not None and "drafter" in self.evaluate.measures:
            raise ValueError("the metric `drafter` needs a student with the teacher's tokenizer, not `tokenizer: own`")
        return self

    @model_validator(mode="after")
    def _adaptable(self) -> Recipe:
        if self.distill.lora is not None and isinstance(self.student, FreshStudent):
            raise ValueError(
                "`distill.lora` trains adapters beside weights that stay as they are, and those of `student: {kind: fresh}` "
                "are random: leave `lora` out, or take a student that begins with trained weights"
            )
        return self

    @model_validator(mode="after")
    def _taught(self) -> Recipe:
        names = {OWN, *self.teachers}
        for name in self.teachers:
            if name in TAKEN or not NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} under `teachers` is no name for a teacher: letters, digits, `-` and `_`, and not `{OWN}`, "
                    "which is the recipe's own, nor `student` or `text`, which decisions in `terms` are about"
                )
        used: set[str] = set()
        for index, source in enumerate(self.corpus.sources):
            asked = source.teacher
            weights = asked if isinstance(asked, dict) else {OWN if asked is None else asked: 1.0}
            for name, weight in weights.items():
                if name not in names:
                    raise ValueError(
                        f"`corpus.sources.{index}.teacher` names {name!r}, and the recipe's teachers are "
                        f"{', '.join(sorted(names))}"
                    )
                if not 0 < weight < float("inf"):
                    raise ValueError(f"`corpus.sources.{index}.teacher`: the weight of {name!r} has to be above 0")
            if not weights:
                raise ValueError(f"`corpus.sources.{index}.teacher` names no teacher")
            used.update(weights)
        if self.write is not None:
            if self.write.by not in names:
                raise ValueError(
                    f"`write.by` names {self.write.by!r}, and the recipe's teachers are {', '.join(sorted(names))}"
                )
            used.add(self.write.by)
        idle = sorted(set(self.teachers) - used)
        if idle:
            raise ValueError(
                f"nothing is learned from, or written by, {', '.join(idle)} under `teachers`: name it as the `teacher` of a "
                "source or as `write.by`, or leave it out"
            )
        if self.teachers and self.corpus.cross_documents:
            raise ValueError(
                "with `corpus.cross_documents` one sequence holds documents of several sources, which several teachers cannot "
                "share"
            )
        return self

    @property
    def student_with_own_tokenizer(self) -> ExistingStudent | None:
        """The student, where it has another tokenizer than the teacher and keeps it."""
        student = self.student
        return student if isinstance(student, ExistingStudent) and student.tokenizer == "own" else None

    @property
    def every_teacher(self) -> dict[str, Teacher]:
        """All teachers by name; the recipe's own is ``teacher``."""
        return {OWN: self.teacher, **self.teachers}

    @property
    def originals(self) -> dict[str, HuggingFaceTeacher]:
        """The models in floats that quantized teachers were made from, by the teacher's name; where the recipe names one."""
        return {
            name: HuggingFaceTeacher(name=teacher.original, dtype=teacher.dtype)
            for name, teacher in self.every_teacher.items()
            if isinstance(teacher, HuggingFaceTeacher) and teacher.original is not None
        }

    @property
    def routes(self) -> tuple[Route, ...]:
        """Which teachers are learned from on which sources."""
        asked = [source.teacher for source in self.corpus.sources]
        # What a teacher wrote is one more source, learned from the recipe's own.
        return routes_of([*asked, None] if self.write is not None else asked)

    @property
    def learned_from(self) -> dict[str, Teacher]:
        """The teachers whose signals are captured, by name; one that only writes is none."""
        names = {OWN} | {name for route in self.routes for name in route.names}
        return {name: teacher for name, teacher in self.every_teacher.items() if name in names}

    @property
    def public_seed(self) -> int:
        """The seed of what is no secret: the corpus's split, evaluation, resampling."""
        return 0 if self.seed is None else self.seed
