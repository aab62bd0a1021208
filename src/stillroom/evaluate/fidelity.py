"""How closely students follow their teacher on held-out text, exactly: dense teacher, no sampling. Knows nothing of files.

The teacher runs once over every sequence; all students are compared with it in the same pass, and only one batch is in
memory at a time. Sums are kept a document, so that intervals can be had by resampling documents.

Legend: D documents, B sequences, P positions where teacher and student predict the same thing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.evaluate.bootstrap import Array
from stillroom.progress import Task
from stillroom.student.vocabulary import VocabularyMap
from stillroom.teacher.forward import hidden_states, logits_from_hidden
from stillroom.train.batches import Batch, BatchSource

CHUNK = 256
"""Positions whose distributions over the vocabulary exist at the same time."""


@dataclass
class Sums:
    """Sums over the positions of each document, every array [D].

    Attributes:
        kl: KL(teacher ‖ student), nats.
        top1: Positions where both would say the same next token.
        top5: Positions where the teacher's next token is among the student's five.
        compared: Positions that were compared.
        nats: Cross-entropy on the text.
        tokens: Tokens that it was summed over, in the model's own tokenization.
        text_bytes: UTF-8 bytes of that text.
    """

    kl: Array
    top1: Array
    top5: Array
    compared: Array
    nats: Array
    tokens: Array
    text_bytes: Array

    @classmethod
    def zeros(cls, documents: int) -> Sums:
        """Nothing yet."""
        return cls(*(np.zeros(documents) for _ in range(7)))

    def as_dict(self) -> dict[str, list[float]]:
        """For JSON."""
        return {key: value.tolist() for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, value: dict[str, list[float]]) -> Sums:
        """From JSON."""
        return cls(**{key: np.asarray(column, dtype=np.float64) for key, column in value.items()})


@dataclass
class Contender:
    """A model to compare with the teacher, and how its ids relate to the teacher's."""

    name: str
    model: Any
    vocabulary: VocabularyMap
    source: BatchSource = field(init=False)
    sums: Sums = field(init=False)


@torch.inference_mode()
def measure(teacher: Any, contenders: list[Contender], heldout: Sequences, task: Task) -> dict[str, Sums]:
    """Compare models with their teacher.

    Args:
        teacher: The teacher, float32.
        contenders: The students.
        heldout: Held-out sequences in the teacher's ids.
        task: Takes progress in tokens.

    Returns:
        Sums by name; the teacher's own are under ``teacher``.
    """
    documents = len(heldout.document_sources)
    own = Sums.zeros(documents)
    for contender in contenders:
        contender.source = BatchSource(heldout, contender.vocabulary, None)
        contender.sums = Sums.zeros(documents)
    for index in range(len(heldout)):
        one = slice(index, index + 1)
        flat_targets = heldout.targets[index]
        where = (flat_targets != IGNORED).nonzero().squeeze(1)
        targets = flat_targets[where]
        owners = heldout.documents[index][where].numpy()
        hidden = hidden_states(teacher, heldout.ids[one], heldout.positions[one])[0, where]
        batches = [contender.source.batch([index]) for contender in contenders]
        students = [
            hidden_states(contender.model, batch.ids, batch.positions)[0]
            for contender, batch in zip(contenders, batches, strict=True)
        ]
        matched = [contender.source.speaking(index) for contender in contenders]
        for start in range(0, len(where), CHUNK):
            part = slice(start, min(start + CHUNK, len(where)))
            logprobs = torch.log_softmax(logits_from_hidden(teacher, hidden[part]), dim=1)
            _add(own.nats, owners[part], -logprobs.gather(1, targets[part, None]).squeeze(1))
            _add(own.kl, owners[part], (logprobs.exp() * (logprobs - logprobs)).sum(1))
            _add(own.top1, owners[part], torch.ones(logprobs.shape[0]))
            for contender, states, places in zip(contenders, students, matched, strict=True):
                _compare(contender, logprobs, states[places[part]], owners[part])
        _add(own.tokens, owners, torch.ones(len(where)))
        own.compared[:] = own.tokens
        own.top5[:] = own.top1
        _add(own.text_bytes, owners, heldout.target_bytes[index][where])
        for contender, states, batch in zip(contenders, students, batches, strict=True):
            _text(contender, states, batch, heldout.documents[index], index)
            contender.sums.text_bytes[:] = own.text_bytes
        task.advance(heldout.length)
    return {"teacher": own} | {contender.name: contender.sums for contender in contenders}


def summarize(sums: Sums, samples: int, confidence: float, seed: int) -> dict[str, Any]:
    """Values with intervals: KL and cross-entropy in nats a token, agreements as shares, bits a byte."""
    from stillroom.evaluate.bootstrap import ratio

    pairs = {
        "kl_to_teacher": (sums.kl, sums.compared),
        "top1_agreement": (sums.top1, sums.compared),
        "top5_agreement": (sums.top5, sums.compared),
        "cross_entropy": (sums.nats, sums.tokens),
        "bits_per_byte": (sums.nats / math.log(2), sums.text_bytes),
    }
    result: dict[str, Any] = {}
    for name, (values, weights) in pairs.items():
        estimate = ratio(values, weights, samples, confidence, seed)
        result[name] = estimate.value
        result[f"{name}_interval"] = [estimate.low, estimate.high]
    return result


def _compare(contender: Contender, teacher: torch.Tensor, states: torch.Tensor, owners: np.ndarray) -> None:
    """KL and agreement at positions of one chunk; ``teacher`` holds log-probabilities over the teacher's ids."""
    used = contender.vocabulary.student_used
    student = torch.log_softmax(logits_from_hidden(contender.model, states)[:, :used], dim=1)
    projected = contender.vocabulary.project_dense(teacher)[:, :used]
    probabilities = projected.exp()
    divergence = torch.where(probabilities > 0, probabilities * (projected - student), 0.0).sum(1)
    said = projected.argmax(1)
    _add(contender.sums.kl, owners, divergence)
    _add(contender.sums.top1, owners, (student.argmax(1) == said).double())
    best = student.topk(min(5, used), dim=1).indices
    _add(contender.sums.top5, owners, (best == said[:, None]).any(1).double())
    _add(contender.sums.compared, owners, torch.ones(len(said)))


def _text(contender: Contender, states: torch.Tensor, batch: Batch, documents: torch.Tensor, index: int) -> None:
    """Cross-entropy on the text in the student's own tokens."""
    used = contender.vocabulary.student_used
    owners = documents[contender.source.origin(index)][batch.rows].numpy()
    for start in range(0, len(batch.rows), CHUNK):
        part = slice(start, min(start + CHUNK, len(batch.rows)))
        student = torch.log_softmax(logits_from_hidden(contender.model, states[batch.rows[part]])[:, :used], dim=1)
        _add(contender.sums.nats, owners[part], -student.gather(1, batch.targets[part, None]).squeeze(1))
    _add(contender.sums.tokens, owners, torch.ones(len(batch.rows)))


def _add(sums: Array, owners: np.ndarray, values: torch.Tensor) -> None:
    np.add.at(sums, owners, values.double().numpy())
