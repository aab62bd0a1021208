"""What the costs of all stages are computed from, and what they come to.

Every package that has a stage has a module ``stage_cost`` beside it: a function that takes the recipe, these counts and this
profile, and returns a :class:`StageCost`. The table of stages names it. Constants that several stages share are here; those of
one stage are beside that stage. ``benchmarks/plan.py`` compares whole plans with what then happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

FLOAT_BYTES = 4
"""Bytes of a float32 number."""
OPEN_STUDENT_SECONDS = 1.5
"""Seconds to open a student that is stored in a run's folder."""
WRITE_BYTES_PER_SECOND = 400e6
"""Bytes per second at which weights are written and their SHA-256 is computed."""


class ModelShape(Protocol):
    """The size of a model: :class:`stillroom.students.shape.Shape` has these attributes."""

    @property
    def layers(self) -> int:
        """Layers."""
        ...

    @property
    def channels(self) -> int:
        """Feed-forward channels per layer."""
        ...

    @property
    def groups(self) -> int:
        """Key/value heads per layer."""
        ...

    @property
    def hidden(self) -> int:
        """Hidden size."""
        ...

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        ...


@dataclass(frozen=True)
class Counts:
    """Sizes of a recipe's models and text.

    Attributes:
        teacher_parameters: Parameters of the teacher.
        student_parameters: Parameters of the student.
        untrimmed_parameters: Parameters of the student if it had the teacher's vocabulary.
        teacher_shape: The teacher's shape.
        student_shape: The student's shape; None for a student that is not pruned from the teacher.
        student_layers: Layers of the student.
        train_tokens: Tokens of the training text's rows: with what pieces repeat and with padding.
        text_tokens: Tokens of the training text itself, which a step's size follows from.
        validation_tokens: Tokens that choose the checkpoint.
        heldout_tokens: Tokens that the evaluation reads.
        sequence_length: Tokens per sequence.
        expansion: Student tokens per teacher token of the training text.
        corpus_seconds: Seconds that reading the text took.
        gguf_bytes: Bytes of each GGUF file that the recipe names, by its type.
        teacher_is_here: Whether the teacher is loaded on this machine.
        other_teachers: Parameters of each of the recipe's other teachers that is loaded on this machine.
        adapter_parameters: Parameters that are trained beside the student's, which are frozen (LoRA); None where the student's
            own are trained.
        writer_parameters: Parameters of the teacher on this machine that writes text; None where that is the recipe's own.
        merges_ids: Whether several of the teacher's ids begin with the same one of the student's, whose vocabulary is trimmed.
    """

    teacher_parameters: int
    student_parameters: int
    untrimmed_parameters: int
    teacher_shape: ModelShape
    student_shape: ModelShape | None
    student_layers: int
    train_tokens: int
    text_tokens: int
    validation_tokens: int
    heldout_tokens: int
    sequence_length: int
    expansion: float
    corpus_seconds: float
    gguf_bytes: Mapping[str, int] = field(default_factory=dict)
    teacher_is_here: bool = True
    other_teachers: tuple[int, ...] = ()
    adapter_parameters: int | None = None
    writer_parameters: int | None = None
    merges_ids: bool = False

    @property
    def teacher_bytes(self) -> int:
        """Bytes of the teacher's weights in float32; none where it is behind an endpoint."""
        return FLOAT_BYTES * self.teacher_parameters if self.teacher_is_here else 0

    @property
    def student_bytes(self) -> int:
        """Bytes of the student's weights in float32."""
        return FLOAT_BYTES * self.student_parameters

    @property
    def trained_bytes(self) -> int:
        """Bytes of what is trained, in float32: the student's weights, or the adapters alone."""
        trained = self.student_parameters if self.adapter_parameters is None else self.adapter_parameters
        return FLOAT_BYTES * trained

    @property
    def ratio(self) -> float:
        """The student's parameters divided by the teacher's, at most 1: how much less work a forward pass is."""
        return min(1.0, self.student_parameters / self.teacher_parameters)

    def write_seconds(self, times: float) -> float:
        """Seconds to write the student's weights so many times."""
        return times * FLOAT_BYTES * self.student_parameters / WRITE_BYTES_PER_SECOND


@dataclass(frozen=True)
class Profile:
    """How fast this machine does a recipe's work, and in how much memory, as the pilot measured it.

    Attributes:
        base_bytes: Memory of this process with its libraries, without any model.
        load_seconds: Seconds to load the teacher.
        load_bytes: Memory that loading the teacher took at its peak, beyond its weights.
        capture_rate: Tokens per second, from ids to encoded signals.
        capture_bytes: Memory that capturing took, beyond the teacher's weights.
        bytes_per_position: Bytes of the cache's shards per position.
        cache_bytes: Bytes of the cache besides its shards, however much it holds.
        exact_rate: Tokens per second through the teacher in float32, without its output layer.
        matrix_rate: Floating-point operations per second of a large matrix product in float32.
        token_seconds: Seconds of a training step per token.
        step_seconds: Seconds of a training step besides.
        token_bytes: Memory of a training step per token of a forward pass.
        train_bytes: Memory of training besides.
        holes: Whether a training comes to hold more than its first steps, because freed memory stays between what is used.
    """

    base_bytes: int
    load_seconds: float
    load_bytes: int
    capture_rate: float
    capture_bytes: int
    bytes_per_position: float
    cache_bytes: int
    exact_rate: float
    matrix_rate: float
    token_seconds: float
    step_seconds: float
    token_bytes: float
    train_bytes: int
    holes: bool = False


@dataclass(frozen=True)
class StageCost:
    """What one stage takes.

    Attributes:
        seconds: Wall time.
        memory_bytes: Peak memory of the process, libraries included.
        disk_bytes: Bytes that the stage writes, at most at one time.
    """

    seconds: float
    memory_bytes: float
    disk_bytes: float = 0.0


def loaded_teacher_bytes(counts: Counts, profile: Profile) -> int:
    """Memory of a process that has loaded the teacher in float32.

    What loading needed at its peak stays with the process, and little of it is used again by what comes after.
    """
    return profile.base_bytes + counts.teacher_bytes + profile.load_bytes
