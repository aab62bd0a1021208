"""What the stage `shrink` takes."""

from __future__ import annotations

from dataclasses import dataclass

from stillroom.recipe.recipe import Recipe
from stillroom.recipe.student import DenseStudent, ShrinkStudent
from stillroom.runs.costs import (
    FLOAT_BYTES,
    OPEN_STUDENT_SECONDS,
    Counts,
    ModelShape,
    Profile,
    StageCost,
    loaded_teacher_bytes,
)
from stillroom.students.importance import POSITIONS, repaired_on

REPAIR_COPIES = 5
"""Copies of a layer's inputs and outputs that are in memory while the layer is repaired."""
CANDIDATES = 4
"""Sets of retained layers that are tried where layers are removed."""


def stage_cost(recipe: Recipe, counts: Counts, profile: Profile) -> StageCost:
    """Measuring, the candidates and the least-squares repair; or opening a student that is not pruned."""
    judged = FLOAT_BYTES * POSITIONS * counts.teacher_shape.vocabulary
    untrimmed = FLOAT_BYTES * counts.untrimmed_parameters
    memory = loaded_teacher_bytes(counts, profile) + 2 * untrimmed + judged
    if isinstance(recipe.student, (ShrinkStudent, DenseStudent)) and recipe.student.heal:
        sample = min(recipe.student.importance.tokens, counts.train_tokens)
        sample = max(sample, repaired_on(recipe.student.importance, counts.text_tokens))
        width = counts.teacher_shape.channels + counts.teacher_shape.hidden
        memory += REPAIR_COPIES * FLOAT_BYTES * sample * width
    return StageCost(
        seconds=profile.load_seconds + _student_seconds(recipe, counts, profile) + counts.write_seconds(1),
        memory_bytes=memory,
        disk_bytes=counts.student_bytes,
    )


def _student_seconds(recipe: Recipe, counts: Counts, profile: Profile) -> float:
    student = recipe.student
    if isinstance(student, DenseStudent):
        # The mixture three times (experts, the proof, what is evaluated) and twice more with the student while it is repaired.
        passes = 3 * min(student.importance.tokens, counts.train_tokens)
        passes += 2 * repaired_on(student.importance, counts.text_tokens) if student.heal else 0
        return passes / profile.exact_rate
    if not isinstance(student, ShrinkStudent) or counts.student_shape is None:
        return OPEN_STUDENT_SECONDS
    work = _Pruning(student, counts, counts.teacher_shape, counts.student_shape)
    rate = _walk_rate(recipe, profile)
    # What the repair multiplies goes faster by as much as its walk through the layers.
    fit = work.measured + work.repaired * (profile.exact_rate / rate if rate > profile.exact_rate else 1.0)
    return (work.tokens - work.walked) / profile.exact_rate + work.walked / rate + fit / profile.matrix_rate


def _walk_rate(recipe: Recipe, profile: Profile) -> float:
    """Tokens per second through the teacher's layers where the repair walks them: in bfloat16 on a CPU that has instructions
    for it, where capturing, which does the output layer too, is at most as fast.
    """
    from stillroom.models.compute import choose_device, fast_bfloat16

    rounded = choose_device(recipe.compute).type == "cpu" and fast_bfloat16("cpu")
    return max(profile.exact_rate, profile.capture_rate) if rounded else profile.exact_rate


@dataclass(frozen=True)
class _Pruning:
    """The work of pruning and repair.

    The sample is split as :class:`stillroom.students.importance.Sample` does it: the last sixth is held out, the rest is fitted
    to with what more the repair is given, and candidates are fitted to a third of that rest (the screening part).
    """

    student: ShrinkStudent
    counts: Counts
    teacher_shape: ModelShape
    student_shape: ModelShape

    @property
    def sample(self) -> float:
        """Tokens of the sample."""
        return min(self.student.importance.tokens, self.counts.train_tokens)

    @property
    def judge(self) -> float:
        """Tokens on which candidates are compared."""
        return max(self.counts.sequence_length, self.sample / 6)

    @property
    def fit(self) -> float:
        """Tokens of the sample that are not held out."""
        return max(self.counts.sequence_length, self.sample - self.judge)

    @property
    def repair(self) -> float:
        """Tokens that the repair of the chosen shape is fitted to."""
        return max(self.counts.sequence_length, repaired_on(self.student.importance, self.counts.text_tokens))

    @property
    def screen(self) -> float:
        """Tokens that each candidate's repair is fitted to."""
        return self.fit / 3

    @property
    def ratio(self) -> float:
        """The student's layers divided by the teacher's."""
        return self.student_shape.layers / self.teacher_shape.layers

    @property
    def fewer_layers(self) -> bool:
        """Whether layers are removed."""
        return self.student_shape.layers < self.teacher_shape.layers

    @property
    def narrower(self) -> bool:
        """Whether feed-forward channels or key/value heads are removed."""
        teacher, student = self.teacher_shape, self.student_shape
        return student.channels < teacher.channels or student.groups < teacher.groups

    @property
    def only_vocabulary(self) -> bool:
        """Whether nothing but the vocabulary is smaller than the teacher's."""
        return all(
            getattr(self.student_shape, axis) == getattr(self.teacher_shape, axis)
            for axis in ("layers", "channels", "groups", "hidden")
        )

    @property
    def candidates(self) -> int:
        """Candidates that are tried."""
        return CANDIDATES if self.fewer_layers and self.student.remove_layers is None else 0

    @property
    def tokens(self) -> float:
        """Tokens through the teacher's layers, or through as many of the student's as cost the same."""
        tokens = 2 * self.screen + self.judge
        if not self.only_vocabulary:
            tokens += self.judge * (1 + self.ratio)
            if self.candidates and self.student.importance.leave_one_out:
                tokens += self.counts.sequence_length * self.teacher_shape.layers / 2
            tokens += self.candidates * self.judge * self.ratio
            if self.narrower:
                tokens += self.fit
        if self.student.target is not None:
            tokens += self.tried * self.judge
        return tokens + self.walked

    @property
    def tried(self) -> int:
        """Shapes that the search prunes, repairs and evaluates on the screening part: two sizes of each axis, a shortlist."""
        return 4 * (2 * len(self.student.target.axes) + 3) if self.student.target is not None else 0

    @property
    def walked(self) -> float:
        """Those of the tokens that the repair takes through the layers: the teacher's once, the student's about twice, to
        record inputs, and to go on with what was repaired.
        """
        repaired = self.tried * self.screen
        if self.student.heal and not self.only_vocabulary:
            repaired += self.candidates * self.screen + self.repair
        return repaired * (1 + 2 * self.ratio)

    @property
    def repaired(self) -> float:
        """Floating-point operations of the least-squares repair."""
        if self.only_vocabulary or not self.student.heal:
            return 0.0
        tokens = self.repair + self.candidates * self.screen
        return self.student_shape.layers * tokens * _repair_operations(self.student_shape)

    @property
    def measured(self) -> float:
        """Floating-point operations of the second moments by which channels and heads are put in order."""
        if self.only_vocabulary or not self.narrower:
            return 0.0
        return self.teacher_shape.layers * self.fit * _repair_operations(self.teacher_shape)


def _repair_operations(shape: ModelShape) -> float:
    """Floating-point operations per layer and token: second moments of the channels and of the attention's outputs, and
    their products with what they are fitted to.
    """
    return 2.0 * (shape.channels**2 + shape.hidden**2 + shape.hidden * (shape.channels + shape.hidden))
