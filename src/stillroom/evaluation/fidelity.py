"""Compares students with their teacher on text, exactly: dense teacher, no sampling. For metrics to sum up.

The teacher runs once over every sequence; all students are compared with it in the same pass. One sequence, on a GPU a batch
of them, and one chunk of logits are in memory at a time. Models that cannot all be in memory run one after the other before
(:mod:`stillroom.evaluation.states`): of each, its hidden states in a file and its output layer are enough.

Legend: P positions where teacher and student predict the same thing, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch

from stillroom.core.progress import Task
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.evaluation.heldout import HeldOut
from stillroom.evaluation.listed import ListedSaid, ListedTeacher
from stillroom.evaluation.routed import RoutedTeachers
from stillroom.evaluation.states import KeptStates, in_students_ids
from stillroom.evaluation.tally import Places, Tally
from stillroom.evaluation.tokens import position_edges
from stillroom.evaluation.worst import Worst
from stillroom.models.forward import hidden_states, output_head
from stillroom.signals.alignment import Alignment
from stillroom.signals.batches import Batch, BatchSource
from stillroom.signals.signal import CoarseSignal, DenseSignal
from stillroom.signals.vocabulary_map import VocabularyMap

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

CHUNK = 256
"""Positions whose distributions over the vocabulary exist at the same time."""
SLICE = 64
"""Positions of those whose intermediate results exist at the same time: large ones come from the system each time, page by
page, which costs more than the arithmetic."""
TOKENS_AT_ONCE = 16_384
"""Tokens of a forward pass on a GPU, which a single sequence would keep waiting."""


AnyTeacher: TypeAlias = "CausalModel | KeptStates | ListedTeacher | RoutedTeachers"


@dataclass
class Contender:
    """A model to compare with the teacher, or what was kept of it, how its ids relate to the teacher's, and its sums."""

    name: str
    model: CausalModel | KeptStates
    vocabulary: VocabularyMap
    tally: Tally


@torch.inference_mode()
def compare(
    teacher: AnyTeacher,
    own: Tally,
    contenders: list[Contender],
    heldout: HeldOut,
    classes: np.ndarray,
    task: Task,
    worst: Worst | None = None,
    only: range | None = None,
    seen: set[int] | None = None,
) -> int:
    """Compare models with their teacher, adding to their tallies.

    Args:
        teacher: The teacher, float32, or what was kept of it; or what was captured of one behind an endpoint: KL and its nats
            are then "at least"; or several, each for the text of its sources.
        own: Takes the teacher's sums.
        contenders: The students.
        heldout: Text in the teacher's ids.
        classes: The class of each teacher's id, [V].
        task: Takes progress in tokens.
        worst: Watches the contender called ``student``.
        only: The sequences to compare; all of them where it is None.
        seen: Documents that had a position to compare in other parts; those of this one are added.

    Returns:
        Documents that had a position to compare.
    """
    seen = set() if seen is None else seen
    computes = contenders[0].model if isinstance(teacher, (ListedTeacher, RoutedTeachers)) else teacher
    device = _device(computes)
    at_once = 1 if device.type == "cpu" else max(1, TOKENS_AT_ONCE // heldout.length)
    for row, where, heard, spoken in _passes(teacher, contenders, heldout, at_once, only or range(len(heldout))):
        places = _places(row, where.numpy(), heldout, classes, own)
        seen.update(row.documents[0][where].tolist())
        targets = row.targets[0][where].to(device)
        said_at = _asked(teacher, row, where, device, heard)
        students = [
            _Student(contender, row, where, heldout, classes, *own_pass)
            for contender, own_pass in zip(contenders, spoken, strict=True)
        ]
        for start in range(0, len(where), CHUNK):
            part = slice(start, min(start + CHUNK, len(where)))
            said = said_at(part)
            here = {axis: bins[part] for axis, bins in places.items()}
            nats = said.nats(targets[part])
            # The teacher against itself: said by the same sums, so that a slip in them would show.
            zero = said.from_itself()
            own.add(here, nats=_float(nats), kl=_float(zero), top1=1.0, top5=1.0, compared=1.0, tokens=1.0)
            _reliability(own, here, said.best, targets[part])
            for student in students:
                student.compare(said, part, here, worst)
        text_bytes = row.target_bytes[0][where].numpy()
        own.add(places, text_bytes=text_bytes)
        for student in students:
            student.contender.tally.add(places, text_bytes=text_bytes * student.covered)
        if worst is not None:
            worst.close(row, where)
        task.advance(heldout.length)
    return len(seen)


class Said(Protocol):
    """What a teacher predicts at the P positions of one chunk."""

    @property
    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and id of the most probable token, both [P]."""
        ...

    def nats(self, targets: torch.Tensor) -> torch.Tensor:
        """−log p of the text's tokens, [P]."""
        ...

    def from_itself(self) -> torch.Tensor:
        """KL(teacher ‖ teacher), [P]: zero, by the sums that it is computed with for students."""
        ...

    def against(
        self, logprobs: torch.Tensor, vocabulary: VocabularyMap, chosen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(teacher ‖ student), nats, and the student's id that the teacher finds most probable, both [P].

        Args:
            logprobs: The student's, [P, V].
            vocabulary: From the teacher's ids to the student's.
            chosen: The chunk's positions that are compared, ascending; None: all.
        """
        ...


Pass = tuple[BatchSource, Batch, torch.Tensor]
"""A sequence in a student's ids, as a source and as a batch, and the student's hidden states [L, H] on it."""


def _passes(
    teacher: AnyTeacher, contenders: list[Contender], heldout: HeldOut, at_once: int, part: range
) -> Iterator[tuple[Sequences, torch.Tensor, torch.Tensor | None, list[Pass]]]:
    """Every sequence, where it has targets, the teacher's hidden states [L, H] on it if it has any, and each student's pass."""
    for begin in range(part.start, part.stop, at_once):
        numbers = range(begin, min(begin + at_once, part.stop))
        rows = [heldout.row(index) for index in numbers]
        heard: list[torch.Tensor | None] = [None] * len(rows)
        if not isinstance(teacher, (ListedTeacher, RoutedTeachers)):
            heard = [*_states(teacher, numbers, [(row.ids, row.positions) for row in rows])]
        passes: list[list[Pass]] = [[] for _ in rows]
        for contender in contenders:
            found = [in_students_ids(row, contender.vocabulary) for row in rows]
            states = _states(contender.model, numbers, [(batch.ids, batch.positions) for _, batch in found])
            for own, (source, batch), hidden in zip(passes, found, states, strict=True):
                own.append((source, batch, hidden))
        for row, hidden_there, own in zip(rows, heard, passes, strict=True):
            yield row, (row.targets[0] != IGNORED).nonzero().squeeze(1), hidden_there, own


def _states(
    model: CausalModel | KeptStates, numbers: range, rows: list[tuple[torch.Tensor, torch.Tensor]]
) -> list[torch.Tensor]:
    """Hidden states [L, H] of sequences of these numbers, ids and positions [1, L] each, in one forward pass; padding is
    behind them.
    """
    if isinstance(model, KeptStates):
        return [model.of(number) for number in numbers]
    if len(rows) == 1:
        return [hidden_states(model, *rows[0])[0]]
    lengths = [ids.shape[1] for ids, _ in rows]
    ids, positions = (torch.zeros(len(rows), max(lengths), dtype=torch.int64) for _ in range(2))
    for number, (mine, where) in enumerate(rows):
        ids[number, : lengths[number]] = mine[0]
        positions[number, : lengths[number]] = where[0]
    hidden = hidden_states(model, ids, positions)
    return [hidden[number, :length] for number, length in enumerate(lengths)]


def _device(model: CausalModel | KeptStates) -> torch.device:
    if isinstance(model, KeptStates):
        return model.head.matrix.device
    device: torch.device = next(model.parameters()).device
    return device


def _logits(model: CausalModel | KeptStates, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [P, V] in float32 of hidden states [P, H]."""
    head = model.head if isinstance(model, KeptStates) else output_head(model)
    return head.finish(torch.nn.functional.linear(hidden, head.matrix, head.bias).float())


def _asked(
    teacher: AnyTeacher,
    row: Sequences,
    where: torch.Tensor,
    device: torch.device,
    heard: torch.Tensor | None,
) -> Callable[[slice], Said]:
    """What a teacher predicts on a row, by chunk of its positions."""
    if isinstance(teacher, ListedTeacher):
        signal = teacher.of(row, device)
        return lambda part: ListedSaid(signal.rows(part.start, part.stop))
    if isinstance(teacher, RoutedTeachers):
        logprobs = teacher.at(row, where)
        return lambda part: _Said(logprobs(part))
    assert heard is not None
    hidden = heard[where.to(device)]
    return lambda part: _Said(_log_softmax_(_logits(teacher, hidden[part])))


def _slices(table: torch.Tensor) -> list[torch.Tensor]:
    """Views of a table [P, V], at most ``SLICE`` rows each."""
    return [table[start : start + SLICE] for start in range(0, len(table), SLICE)]


def _log_softmax_(logits: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of logits [P, V], in place."""
    for rows in _slices(logits):
        rows.copy_(torch.log_softmax(rows, dim=1))
    return logits


class _Said:
    """What the teacher predicts at the positions of one chunk, over one vocabulary of students; carried over once."""

    def __init__(self, logprobs: torch.Tensor) -> None:
        self.logprobs = logprobs  # [P, V], in the teacher's ids
        self._heard: dict[VocabularyMap, tuple[torch.Tensor, torch.Tensor]] = {}
        self._coarse: dict[VocabularyMap, CoarseSignal] = {}

    @property
    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Said`."""
        found = self.logprobs.max(dim=1)
        return found.values, found.indices

    def nats(self, targets: torch.Tensor) -> torch.Tensor:
        """See :class:`Said`."""
        return -self.logprobs.gather(1, targets[:, None]).squeeze(1)

    def from_itself(self) -> torch.Tensor:
        """See :class:`Said`."""
        found = []
        for logprobs in _slices(self.logprobs):
            same = (logprobs - logprobs).mul_(logprobs.exp())
            # An id that one of several teachers does not have is impossible, and adds nothing.
            found.append(same.masked_fill_(logprobs.isneginf(), 0.0).sum(1))
        return torch.cat(found)

    def against(
        self, logprobs: torch.Tensor, vocabulary: VocabularyMap, chosen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See :class:`Said`. Of a student with another tokenizer: of the ids that both have, and all others as one."""
        if isinstance(vocabulary, Alignment):
            if vocabulary not in self._coarse:
                self._coarse[vocabulary] = vocabulary.coarse(DenseSignal(self.logprobs))
            coarse, best = self._coarse[vocabulary], self.best[1]
            if chosen is not None:
                coarse, best = coarse.rows_at(chosen), best[chosen]
            return coarse.divergence_from(logprobs), vocabulary.first.to(logprobs.device)[best]
        projected, probabilities = self.heard(vocabulary)
        divergence = torch.where(probabilities > 0, probabilities * (projected - logprobs), 0.0).sum(1)
        return divergence, projected.argmax(1)

    def heard(self, vocabulary: VocabularyMap) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and probabilities in the student's ids, both [P, V]."""
        if vocabulary not in self._heard:
            parts = (self.logprobs,) if vocabulary.is_identity else _slices(self.logprobs)
            found = [vocabulary.project_dense(logprobs)[:, : vocabulary.student_used] for logprobs in parts]
            projected = found[0] if len(found) == 1 else torch.cat(found)
            self._heard[vocabulary] = projected, projected.exp()
        return self._heard[vocabulary]


class _Student:
    """One contender's pass over one sequence.

    Its tokens that are predicted are its *rows*. Each is at the position from which the teacher predicts the whole token that
    it is a sub-token of; the first row of a place is where both predict the same.
    """

    def __init__(
        self,
        contender: Contender,
        row: Sequences,
        where: torch.Tensor,
        heldout: HeldOut,
        classes: np.ndarray,
        source: BatchSource,
        batch: Batch,
        hidden: torch.Tensor,
    ) -> None:
        self.contender = contender
        device = hidden.device
        keep = (row.segments[0] >= 0).nonzero().squeeze(1)
        owner = keep[source.origin(0)[batch.rows + 1]] - 1
        # The sub-tokens of a document's first token, which the teacher does not predict, do not count: nor do its bytes.
        counts = torch.isin(owner, where)
        rows, owner = batch.rows[counts], owner[counts]
        self.states = hidden[rows.to(device)]
        self.targets = batch.targets[counts].to(device)
        self.places = _places(row, owner.numpy(), heldout, classes, contender.tally)
        self.begins = torch.searchsorted(owner, torch.cat([where, where[-1:] + 1]))
        self.first = torch.searchsorted(rows, source.speaking(0))
        self.spoken = source.spoken(0)
        covered = source.covered(0)
        self.covered = np.ones(len(where), dtype=np.int64) if covered is None else covered.numpy().astype(np.int64)

    def compare(self, said: Said, part: slice, here: Places, worst: Worst | None) -> None:
        """Sums over the places of one chunk: closeness to the teacher, cross-entropy on the text, calibration."""
        low, high = int(self.begins[part.start]), int(self.begins[part.stop])
        vocabulary, tally = self.contender.vocabulary, self.contender.tally
        logits = _logits(self.contender.model, self.states[low:high])[:, : vocabulary.student_used]
        logprobs = torch.log_softmax(logits, dim=1)
        targets = self.targets[low:high]
        highest = logprobs.max(dim=1)
        best = (highest.values, highest.indices)
        text = {axis: bins[low:high] for axis, bins in self.places.items()}
        tally.add(text, nats=_float(-logprobs.gather(1, targets[:, None]).squeeze(1)), tokens=1.0)
        _reliability(tally, text, best, targets)
        if isinstance(vocabulary, Alignment):
            self._aligned(said, logprobs, part, here, low, worst)
            return
        first = (self.first[part] - low).to(logprobs.device)
        if len(first) < len(logprobs):
            logprobs = logprobs[first]
        own = best[1][first]
        divergence, theirs = said.against(logprobs, vocabulary)
        likeliest = logprobs.topk(min(5, logprobs.shape[1]), dim=1).indices
        tally.add(
            here,
            kl=_float(divergence),
            top1=_float(own == theirs),
            top5=_float((likeliest == theirs[:, None]).any(1)),
            compared=1.0,
        )
        if worst is not None and self.contender.name == "student":
            worst.add(divergence.cpu(), said.best[1].cpu(), own.cpu())

    def _aligned(
        self, said: Said, logprobs: torch.Tensor, part: slice, here: Places, low: int, worst: Worst | None
    ) -> None:
        """Closeness to a teacher with another tokenizer: where both predict the same token."""
        begin, end = torch.searchsorted(self.spoken, torch.tensor([part.start, part.stop])).tolist()
        chosen = self.spoken[begin:end] - part.start
        logprobs = logprobs[(self.first[begin:end] - low).to(logprobs.device)]
        there = chosen.to(logprobs.device)
        divergence, theirs = said.against(logprobs, self.contender.vocabulary, there)
        likeliest = logprobs.topk(min(5, logprobs.shape[1]), dim=1).indices
        self.contender.tally.add(
            {axis: bins[chosen.numpy()] for axis, bins in here.items()},
            kl=_float(divergence),
            top1=_float(likeliest[:, 0] == theirs),
            top5=_float((likeliest == theirs[:, None]).any(1)),
            compared=1.0,
        )
        if worst is not None and self.contender.name == "student":
            # A window of the worst passages counts 0 where nothing is compared; it shows the teacher's choice there.
            count = part.stop - part.start
            spread = torch.zeros(count).index_copy_(0, chosen, divergence.float().cpu())
            own = self.contender.vocabulary.first[said.best[1].cpu()].clamp_min(0)
            worst.add(spread, said.best[1].cpu(), own.index_copy(0, chosen, likeliest[:, 0].cpu()))


def _places(row: Sequences, where: np.ndarray, heldout: HeldOut, classes: np.ndarray, tally: Tally) -> Places:
    """Group and bins of predicting positions; a token's class is that of the text's token which is predicted."""
    documents = row.documents[0].numpy()[where]
    edges = position_edges(heldout.length)
    places: Places = {
        "group": documents % tally.groups,
        "all": np.zeros(len(where), dtype=np.int64),
    }
    if "source" in tally.axes:
        places["source"] = heldout.document_sources.numpy()[documents].astype(np.int64)
        places["position"] = np.searchsorted(edges, row.positions[0].numpy()[where], side="right") - 1
        places["class"] = classes[row.ids[0].numpy()[where + 1]]
    return places


def _reliability(tally: Tally, here: Places, best: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> None:
    """Confidence in the likeliest token (``best``: log-probabilities and ids of the maxima), and whether it came."""
    tally.add_reliability(here["group"], _float(best[0].exp()), _float(best[1] == targets))


def _float(values: torch.Tensor) -> np.ndarray:
    return values.cpu().double().numpy()
