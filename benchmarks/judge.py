"""One evaluator for students of any origin: whole held-out chats against the teacher, and what greedy answers look like.

Each chat is read by itself and whole: nothing is packed, and no target lacks its beginning. Positions are those from which
the teacher predicts a token of the assistant. Imports the project's tokenization, vocabulary map and intervals, and nothing
of its training or its runs, so that it also measures what other commits and other tools made.

Legend: T tokens of a chat, P its positions, V vocabulary, D chats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillroom.corpus.documents import Document
from stillroom.corpus.sources import read_source
from stillroom.corpus.split import split_of
from stillroom.corpus.tokens import Encoder
from stillroom.evaluation.answers import Speaker
from stillroom.evaluation.bench import Loaded
from stillroom.evaluation.intervals import Array, Estimate, difference, ratio
from stillroom.models.load import load_student
from stillroom.signals.vocabulary_map import VocabularyMap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillroom.models.types import CausalModel
    from stillroom.recipe.corpus import CorpusConfig

CONFIDENCE = 0.95
ANSWER_TOKENS, REPEATED = 96, 8
Chat = tuple[dict[str, str], ...]
"""Messages, the assistant's last."""


@dataclass(frozen=True)
class Judged:
    """Sums of one student over each chat, [D].

    Attributes:
        kl: KL(teacher ‖ student) over the student's own ids, nats.
        agreement: Positions where both have the same likeliest token.
        positions: Positions.
        nats: Cross-entropy on the text.
        text_bytes: UTF-8 bytes of the text.
        kl_common: KL over the ids that it was asked for instead (``common``), nats; the same as ``kl`` without.
    """

    kl: Array
    agreement: Array
    positions: Array
    nats: Array
    text_bytes: Array
    kl_common: Array

    def as_dict(self) -> dict[str, Any]:
        """Means with intervals over chats."""

        def of(values: Array, weights: Array, factor: float = 1.0) -> dict[str, Any]:
            return shown(ratio(values * factor, weights, CONFIDENCE))

        return {
            "kl": of(self.kl, self.positions),
            "kl_common": of(self.kl_common, self.positions),
            "top1_agreement": of(self.agreement, self.positions),
            "bits_per_byte": of(self.nats, self.text_bytes, 1 / math.log(2)),
            "documents": len(self.kl),
            "positions": int(self.positions.sum()),
        }

    def sums(self) -> dict[str, list[float]]:
        """By chat, for paired comparisons."""
        return {name: getattr(self, name).tolist() for name in self.__dataclass_fields__}

    @classmethod
    def from_sums(cls, sums: dict[str, list[float]]) -> Judged:
        """What :meth:`sums` gave."""
        return cls(**{name: np.asarray(values) for name, values in sums.items()})


def shown(found: Estimate) -> dict[str, Any]:
    """An estimate as results hold it."""
    return {"value": found.value, "interval": [found.low, found.high]}


def mean(found: Sequence[Judged]) -> Judged:
    """Students of several seeds on the same chats, averaged chat by chat."""
    return Judged(*(np.mean([getattr(one, name) for one in found], axis=0) for name in Judged.__dataclass_fields__))


def kl_ratio(first: Judged, second: Judged) -> Estimate:
    """First's KL over second's on the same chats, over common ids."""
    return ratio(first.kl_common, second.kl_common, CONFIDENCE)


def agreement_gain(first: Judged, second: Judged) -> Estimate:
    """First's agreement minus second's on the same chats, in percentage points."""
    return difference(100 * first.agreement, 100 * second.agreement, first.positions, CONFIDENCE)


def chats_of(config: CorpusConfig, tokenizer: PreTrainedTokenizerFast, longest: int) -> dict[str, list[Chat]]:
    """The chats of a recipe's sources by split, in the order of their digests: those of at most ``longest`` tokens."""
    found: dict[str, Document] = {}
    for source in config.sources:
        for document in read_source(source):
            if document.messages and not document.is_empty:
                found.setdefault(document.digest, document)
    sides = split_of(list(found), config.validation_share, config.heldout_share)
    order = sorted(found)
    fits = within([found[digest] for digest in order], tokenizer, longest)
    splits: dict[str, list[Chat]] = {"train": [], "validation": [], "heldout": []}
    for digest, short in zip(order, fits, strict=True):
        if short:
            splits[sides[digest]].append(tuple(dict(message) for message in found[digest].messages))
    return splits


def within(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, longest: int) -> list[bool]:
    """Which chats have at most so many tokens."""
    encoder = Encoder(tokenizer)
    return [len(tokens.ids) <= longest for tokens in encoder.encode(list(documents))]


def open_model(folder: Path) -> CausalModel:
    """A model's folder, float32, for evaluation."""
    return load_student(folder, torch.float32)[0].eval().requires_grad_(requires_grad=False)


@torch.inference_mode()
def judge(
    teacher: CausalModel,
    tokenizer: PreTrainedTokenizerFast,
    students: dict[str, tuple[CausalModel, VocabularyMap]],
    chats: Sequence[Chat],
    common: VocabularyMap | None = None,
) -> dict[str, Judged]:
    """Measure students on chats.

    Args:
        teacher: The teacher, float32.
        tokenizer: Its own.
        students: Models and the maps from the teacher's ids to theirs.
        chats: What is measured on.
        common: Where students with the teacher's vocabulary are compared with one of fewer ids: its map. Their KL over the
            ids of that map is given too: merging ids makes a KL smaller, so that nobody gains by having fewer.
    """
    sums: dict[str, list[list[float]]] = {name: [] for name in students}
    documents = [Document("", chat, f"chat {number}") for number, chat in enumerate(chats)]
    for tokens in Encoder(tokenizer).encode(documents):
        ids = torch.from_numpy(tokens.ids)
        learned = torch.from_numpy(tokens.learned)
        learned[0] = False  # nothing predicts the first token
        targets = learned.nonzero().squeeze(1)
        size = int(tokens.bytes[tokens.learned].sum())
        logprobs = torch.log_softmax(teacher(input_ids=ids[None]).logits[0, targets - 1].float(), dim=1)  # [P, V]
        for name, (model, vocabulary) in students.items():
            sums[name].append(
                [*_one(model, vocabulary, ids, targets, logprobs, common), float(len(targets)), float(size)]
            )
    found = {}
    for name, rows in sums.items():
        kl, merged, agreement, nats, positions, text_bytes = np.asarray(rows).T
        found[name] = Judged(kl, agreement, positions, nats, text_bytes, merged)
    return found


def _one(
    model: CausalModel,
    vocabulary: VocabularyMap,
    ids: torch.Tensor,
    targets: torch.Tensor,
    logprobs: torch.Tensor,
    common: VocabularyMap | None,
) -> tuple[float, float, float, float]:
    """KL, KL over common ids, agreements and nats of one student on one chat."""
    own, origin = vocabulary.expand(ids)
    logits = model(input_ids=own[None]).logits[0, :, : vocabulary.student_used].float()
    # A token of the teacher may be several of the student's; the first is predicted from where the teacher predicts it.
    first = torch.searchsorted(origin, targets) - 1
    said = torch.log_softmax(logits[first], dim=1)
    theirs = vocabulary.project_dense(logprobs)[:, : vocabulary.student_used]
    kl = _kl(theirs, said)
    merged = kl
    if common is not None and vocabulary.is_identity and not common.is_identity:
        whole = torch.nn.functional.pad(said, (0, common.teacher_size - said.shape[1]), value=float("-inf"))
        merged = _kl(*(common.project_dense(side)[:, : common.student_used] for side in (logprobs, whole)))
    agreement = float((said.argmax(1) == theirs.argmax(1)).sum())
    rows = torch.isin(origin, targets).nonzero().squeeze(1)
    text = torch.log_softmax(logits[rows - 1], dim=1).gather(1, own[rows, None])
    return kl, merged, agreement, -float(text.double().sum())


def _kl(theirs: torch.Tensor, said: torch.Tensor) -> float:
    probabilities = theirs.exp()
    terms = torch.where(probabilities > 0, probabilities * (theirs - said), 0.0)
    return float(terms.double().sum())


def answers(
    model: CausalModel, tokenizer: PreTrainedTokenizerFast, vocabulary: VocabularyMap, questions: Sequence[str]
) -> list[str]:
    """Greedy answers of at most ``ANSWER_TOKENS`` tokens, without a repetition penalty."""
    speaker = Speaker(Loaded(model, tokenizer, vocabulary, 0))
    return [answer.text for answer in speaker.chat(questions, ANSWER_TOKENS)]


def degenerate(ids: Sequence[int]) -> bool:
    """Whether a run of ``REPEATED`` tokens occurs twice."""
    seen = set()
    for start in range(len(ids) - REPEATED + 1):
        run = tuple(ids[start : start + REPEATED])
        if run in seen:
            return True
        seen.add(run)
    return False
