"""A recipe: one closed tree of settings, read from YAML."""

from __future__ import annotations

from pydantic import Field

from stillroom.core.tracking import Tracker
from stillroom.recipe.capture import CaptureConfig
from stillroom.recipe.compute import ComputeConfig
from stillroom.recipe.corpus import CorpusConfig
from stillroom.recipe.evaluation import EvaluateConfig
from stillroom.recipe.export import ChatConfig, ExportConfig
from stillroom.recipe.section import SINCE, Section
from stillroom.recipe.student import ShrinkStudent, Student
from stillroom.recipe.teacher import Teacher
from stillroom.recipe.terms import TermsConfig
from stillroom.recipe.training import DistillConfig


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
    teacher: Teacher
    """The model to learn from."""
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

    @property
    def public_seed(self) -> int:
        """The seed of what is no secret: the corpus's split, evaluation, resampling."""
        return 0 if self.seed is None else self.seed
