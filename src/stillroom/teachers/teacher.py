"""What a teacher is to the stages: a vocabulary, an identity, and scores of every next token.

A stage asks for what it needs. Capture needs whole distributions (:func:`require`); pruning, evaluation and profiling need the
model itself (:func:`weights_of`). Other teachers are refused with the name of what asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from stillroom.core.errors import TeacherError
from stillroom.corpus.sequences import Sequences
from stillroom.models.load import LoadedTeacher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

Capability = Literal["weights", "dense", "top", "text_only", "generate"]
"""What a teacher can give; :data:`MEANING` has each in words."""
MEANING: dict[Capability, str] = {
    "weights": "weights",
    "dense": "whole distribution over the vocabulary",
    "top": "most probable tokens with their probabilities",
    "text_only": "text",
    "generate": "continuations of prompts",
}
"""Capabilities as messages name them."""
LABELS = ("name", "licence", "served_by", "claim")
"""Keys of :meth:`Teacher.record` of which nothing that is learned depends."""


def learned_from(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a teacher's record that counts in the result of a capture: another licence, or another name for the same
    weights, makes no new student.
    """
    return {key: value for key, value in record.items() if key not in LABELS}


@dataclass(frozen=True)
class Vocabulary:
    """A teacher's token ids.

    Attributes:
        size: Ids of its distribution, with the padding rows of its output layer.
        tokenizer: From text to ids.
    """

    size: int
    tokenizer: PreTrainedTokenizerFast


class Teacher(Protocol):
    """A teacher, opened.

    Legend: N positions of a sequence that have a target, V ids of the vocabulary.
    """

    @property
    def name(self) -> str:
        """How people call it."""
        ...

    @property
    def vocabulary(self) -> Vocabulary:
        """Its token ids."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """SHA-256 digests: ``teacher`` of what computes the scores, ``tokenizer`` of what makes the ids, and ``config`` of
        what is configured apart from ``teacher``, if there is such a thing. And ``quantization``, in words, where weights are
        stored quantized.

        Scores of teachers with the same identity may be stored in one cache.
        """
        ...

    @property
    def licence(self) -> str | None:
        """Its licence as the recipe states it, or else its own metadata; None where neither does."""
        ...

    @property
    def dtype(self) -> str:
        """The dtype that it computes in, such as ``bfloat16``."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can give."""
        ...

    def record(self) -> dict[str, Any]:
        """What a run keeps of it in ``teacher.json``: ``name``, ``family``, ``digest``, ``tokenizer_digest``, ``licence``,
        ``parameters``, ``bytes`` of the stored weights, ``dtype``; None where it does not know. ``quantization`` where its
        weights are stored quantized.
        """
        ...

    def batch_tokens(self, length: int) -> int:
        """Tokens that one call of :meth:`score` can take now.

        It is a multiple of the sequences' ``length``, at least one sequence.
        """
        ...

    def score(
        self, sequences: Sequences, indices: Sequence[int], temperature: float = 1.0
    ) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
        """Scores of every id as the next token, sequence by sequence, in one forward pass.

        Args:
            sequences: A split.
            indices: Those of its sequences to score.
            temperature: Divides the logits.

        Yields:
            A sequence's index and its scores, some positions at a time, together [N, V] float32 on the CPU. Scores are
            log-probs plus a constant for each position, so that ``log_softmax`` of them gives the log-probs: logits are
            scores, too.

        Raises:
            RuntimeError: The sequences do not fit into memory together, in words that
                :func:`stillroom.core.errors.translate` knows; or MemoryError.
        """
        ...


class TeacherWithWeights(Teacher, Protocol):
    """A teacher whose model is in memory: one with the capability ``weights``."""

    @property
    def loaded(self) -> LoadedTeacher:
        """The model and its tokenizer."""
        ...


def require(teacher: Teacher, capability: Capability, asking: str) -> None:
    """Refuse a teacher that lacks what is needed.

    Args:
        teacher: The teacher.
        capability: What is needed.
        asking: What needs it, as the message begins: ``The stage `shrink```.

    Raises:
        TeacherError: The teacher lacks it.
    """
    if capability in teacher.capabilities:
        return
    given = ", ".join(MEANING[known] for known in MEANING if known in teacher.capabilities) or "nothing"
    raise TeacherError(
        f"{asking} needs the teacher's {MEANING[capability]}, and the teacher {teacher.name} gives: {given}.",
        "Use a teacher that is a model on this machine: `teacher: {kind: huggingface}` or `{kind: gguf}`.",
    )


def weights_of(teacher: Teacher, asking: str) -> LoadedTeacher:
    """The teacher's model. Arguments and errors as in :func:`require`."""
    require(teacher, "weights", asking)
    return cast("TeacherWithWeights", teacher).loaded
