"""Batches for training: packed sequences in the student's ids, with the teacher's signals.

Legend: B sequences, L tokens, N positions with a target, K entries per position.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from stillroom.corpus.joined import JoinedSequences
from stillroom.corpus.mapped import MappedSequences
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.documents import Documents, documents_of
from stillroom.signals.alignment import Alignment, text_logprobs
from stillroom.signals.projected import ProjectedEntropy
from stillroom.signals.routed import Signals
from stillroom.signals.signal import Chunks, CoarseSignal, DenseSignal, Signal, SparseSignal
from stillroom.signals.vocabulary_map import VocabularyMap

PREFETCHED = 2
REMEMBERED_TOKENS = 1 << 22
"""Tokens of sequences that a source keeps in the student's ids, at about 43 bytes each; others are made for each batch."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass takes.

    Attributes:
        ids: Student ids, [B, L].
        positions: Position inside the document piece, [B, L].
        rows: Where the N positions with a target are in the flattened [B · L].
        targets: The student id that each of them predicts, [N].
        signal: What the teacher predicts at each of them, or None.
        entropy: Sum of the teacher's entropy over the positions that the teacher predicts, nats; with a sampled signal, what
            of it is left over the student's ids (:meth:`VocabularyMap.entropy`).
        documents: Where documents are, for a GPU; None on the CPU.
        chunks: What a student with another tokenizer learns as wholes; None where tokens are compared alone.
        silent: Positions at which the teacher rules out every id that the student has, so that it teaches nothing.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor
    targets: torch.Tensor
    signal: Signal | None
    entropy: float = 0.0
    documents: Documents | None = None
    chunks: Chunks | None = None
    silent: int = 0

    @property
    def left_out(self) -> float:
        """The teacher's entropy that a loss on this signal leaves out, summed, nats.

        Only a loss on a sample leaves it out: with a dense or a partial signal the loss is a divergence itself.
        """
        return self.entropy if isinstance(self.signal, SparseSignal) and self.signal.unbiased else 0.0

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device; out of pinned memory, the copy is not waited for."""
        batch = self if device.type == "cpu" else self.located()
        return batch._each(
            lambda tensor: (
                tensor.to(device, non_blocking=tensor.device.type == "cpu" and tensor.is_pinned())
                if device.type == "cuda"
                else tensor.to(device)
            ),
            lambda documents: documents.to(device),
        )

    def padded(self, multiple: int) -> Batch:
        """The same batch, on the CPU and without documents, in rows of a multiple of so many tokens.

        What is added to a row has no target and is a document of its own.
        """
        count, length = self.ids.shape
        more = -length % multiple
        if more == 0:
            return self
        rest = torch.arange(more, dtype=self.positions.dtype).expand(count, more)
        return replace(
            self,
            ids=torch.nn.functional.pad(self.ids, (0, more)),
            positions=torch.cat([self.positions, rest], dim=1),
            rows=self.rows + self.rows // length * more,
        )

    def located(self) -> Batch:
        """The same batch with its documents, which are looked for on the CPU."""
        if self.documents is not None or self.positions.device.type != "cpu":
            return self
        return replace(self, documents=documents_of(self.positions))

    def pinned(self) -> Batch:
        """The same batch in pinned memory, from where a GPU takes it by itself. It needs CUDA."""
        return self.located()._each(lambda tensor: tensor.pin_memory(), Documents.pinned)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor], moved: Callable[[Documents], Documents]) -> Batch:
        return Batch(
            change(self.ids),
            change(self.positions),
            change(self.rows),
            change(self.targets),
            None if self.signal is None else self.signal.each(change),
            self.entropy,
            None if self.documents is None else moved(self.documents),
            None if self.chunks is None else self.chunks.each(change),
            self.silent,
        )


class BatchSource:
    """Makes batches of sequences, in any order.

    Args:
        sequences: The split, in the teacher's ids.
        vocabulary: From the teacher's ids to the student's.
        cache: The teacher's signals; None for training on the text alone.
        projected: The teacher's entropy over the student's ids, where it was measured; without it a sampled signal's is
            estimated from the draw, and a KL is at most what it would be with it.
        exact: Take of a partial signal what it says exactly of the student's ids, as of a coarse one: for a KL that is 0 where
            the student is its teacher. A training takes more: each listed sub-token with the mass of the listed ids alone.

    Inside the sub-tokens of an id that the student lacks the teacher predicts nothing; there the next one is certain, and
    the signal says so and marks them: there the text teaches, by cross-entropy whatever the objective is.
    """

    def __init__(
        self,
        sequences: Sequences | MappedSequences | JoinedSequences,
        vocabulary: VocabularyMap,
        cache: Signals | None,
        projected: ProjectedEntropy | None = None,
        *,
        exact: bool = False,
    ) -> None:
        self.sequences = sequences
        self.vocabulary = vocabulary
        self.cache = cache
        self.projected = projected
        self.exact = exact
        self._remembered: dict[int, _Row] = {}

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def targets(self) -> int:
        """Positions with a target in one pass over the split."""
        return sum(int((self._row(index).targets != IGNORED).sum()) for index in range(len(self)))

    def batch(self, indices: list[int]) -> Batch:
        """The batch of these sequences; of none, one without a target (a process of a group may have nothing to do in a
        pass).
        """
        if not indices:
            found = self.batch([0])
            said = None if found.signal is None else found.signal.rows(0, 0)
            return Batch(found.ids, found.positions, found.rows[:0], found.targets[:0], said)
        rows = [self._row(index) for index in indices]
        length = max(row.ids.shape[0] for row in rows)
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        # Padding counts on from 0, so that it is a document of its own and no one attends to it.
        positions = torch.arange(length).repeat(len(rows), 1)
        targets = torch.full((len(rows), length), IGNORED)
        speaks = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            count = row.ids.shape[0]
            ids[number, :count] = row.ids
            positions[number, :count] = row.positions
            positions[number, count:] -= count
            targets[number, :count] = row.targets
            speaks[number, :count] = row.speaks
        flat = targets.flatten()
        chosen = (flat != IGNORED).nonzero().squeeze(1)
        signal: Signal | None = None
        entropy = 0.0
        if self.cache is not None and isinstance(self.vocabulary, Alignment):
            signal, chunks, silent = self._aligned(indices, rows, length, chosen)
            return Batch(ids, positions, chosen, flat[chosen], signal, chunks=chunks, silent=silent)
        if self.cache is not None:
            digests = [address for index in indices for address in self.sequences.addresses_of(index)]
            said, counts = self.cache.read(digests)
            entropy = self._entropy(self.cache, digests, counts, said)
            signal = self._complete(said, flat[chosen], speaks.flatten()[chosen])
        silent = int(signal.silent.sum()) if isinstance(signal, DenseSignal) else 0
        return Batch(ids, positions, chosen, flat[chosen], signal, entropy, silent=silent)

    def speaking(self, index: int) -> torch.Tensor:
        """Where, in the student's tokens of a sequence, the teacher predicts: one place per position with a target."""
        return self._row(index).speaks.nonzero().squeeze(1)

    def spoken(self, index: int) -> torch.Tensor:
        """The teacher's positions of a sequence, counted among those with a target, that :meth:`speaking` has a place for."""
        row = self._row(index)
        return torch.arange(int(row.speaks.sum())) if row.taken is None else row.taken

    def covered(self, index: int) -> torch.Tensor | None:
        """Which of the teacher's positions with a target predict text that the student predicts, too; None: all."""
        return self._row(index).covered

    def origin(self, index: int) -> torch.Tensor:
        """The teacher's token that each of the student's tokens of a sequence is a sub-token of."""
        return self._row(index).source

    def stream(self, order: list[list[int]], change: Callable[[Batch], Batch] | None = None) -> Iterator[Batch]:
        """Batches in an order, decoded ahead, and changed if asked, on another thread."""
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=PREFETCHED)
        stop = threading.Event()

        def put(item: Batch | BaseException | None) -> bool:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return True
            return False

        def work() -> None:
            try:
                for indices in order:
                    batch = self.batch(indices)
                    if not put(batch if change is None else change(batch)):
                        return
                put(None)
            except BaseException as error:
                put(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()

    def _row(self, index: int) -> _Row:
        """One sequence in the student's ids, remembered where there is memory."""
        found = self._remembered.get(index)
        if found is None:
            found = self._expand(index)
            if (len(self._remembered) + 1) * self.sequences.length <= REMEMBERED_TOKENS:
                self._remembered[index] = found
        return found

    def _expand(self, index: int) -> _Row:
        """One sequence in the student's ids. A position is predicted where it ends a teacher's token that has a target."""
        sequences = self.sequences.part([index])
        if isinstance(self.vocabulary, Alignment):
            return _aligned_row(self.vocabulary, sequences, 0)
        keep = sequences.segments[0] >= 0
        student_ids, source = self.vocabulary.expand(sequences.ids[0][keep])
        segments = sequences.segments[0][keep][source]
        learned = sequences.loss_mask[0][keep][source]
        count = student_ids.shape[0]
        where = torch.arange(count)
        begins = torch.ones(count, dtype=torch.bool)
        begins[1:] = segments[1:] != segments[:-1]
        positions = where - torch.where(begins, where, 0).cummax(0).values
        targets = torch.full((count,), IGNORED)
        if count > 1:
            same = (segments[1:] == segments[:-1]) & learned[1:]
            targets[:-1] = torch.where(same, student_ids[1:], IGNORED)
        last_piece = torch.ones(count, dtype=torch.bool)
        last_piece[:-1] = source[1:] != source[:-1]
        speaks = last_piece & (sequences.targets[0][keep][source] != IGNORED)
        return _Row(student_ids, positions, targets, speaks, source)

    def _aligned(
        self, indices: list[int], rows: list[_Row], length: int, chosen: torch.Tensor
    ) -> tuple[CoarseSignal, Chunks, int]:
        """The signal of a student with another tokenizer: nothing where chunks are compared, or where nothing is; and at how
        many positions it could have been compared, and the teacher rules out all that it knows.
        """
        assert isinstance(self.vocabulary, Alignment)
        assert self.cache is not None
        sequences = self.sequences
        number = torch.full((len(rows), length), -1)
        speaks = torch.zeros(len(rows), length, dtype=torch.bool)
        taken: list[torch.Tensor] = []
        totals: list[torch.Tensor] = []
        said: list[CoarseSignal] = []
        found = 0
        for place, (index, row) in enumerate(zip(indices, rows, strict=True)):
            assert row.taken is not None
            assert row.chunk is not None
            assert row.members is not None
            here = self.cache.read(sequences.addresses_of(index))[0]
            text = sequences.part([index]).targets[0]
            of_text = text_logprobs(here, text[text != IGNORED])
            member, owner = row.members
            total = torch.zeros(row.chunks).index_add_(0, owner, of_text[member].float())
            count = row.ids.shape[0]
            number[place, :count] = torch.where(row.chunk >= 0, row.chunk + found, -1)
            speaks[place, :count] = row.speaks
            totals.append(total)
            found += row.chunks
            taken.append(row.taken)
            said.append(self.vocabulary.coarse(here).rows_at(row.taken))
        logprobs = torch.cat(totals)
        numbers = number.flatten()[chosen]
        # A chunk with a token that a list does not hold is not known.
        known = ~torch.isnan(logprobs)
        numbers = torch.where((numbers >= 0) & known[numbers.clamp_min(0)], numbers, -1) if found else numbers
        here_speaks = speaks.flatten()[chosen]
        silent = sum(int(signal.silent.sum()) for signal in said)
        return _spread(said, here_speaks), Chunks(numbers, logprobs.nan_to_num(0.0)), silent

    def _entropy(self, cache: Signals, digests: list[str], counts: list[int], said: Signal) -> float:
        """The teacher's entropy over the student's ids, summed over what the cache says of these pieces, nats."""
        each = [cache.entropy(digest) for digest in digests]
        if not isinstance(said, SparseSignal) or not said.unbiased or self.vocabulary.is_identity:
            return sum(each)
        if self.projected is not None:
            return sum(map(self.projected.of, digests, each, counts))
        return sum(each) - float(self.vocabulary.least_lost(said).sum(dtype=torch.float64))

    def _complete(self, said: Signal, targets: torch.Tensor, speaks: torch.Tensor) -> Signal:
        """The projected signal, with certainty of the next sub-token where the teacher predicts nothing."""
        if self.exact and isinstance(said, SparseSignal) and not said.unbiased and not self.vocabulary.is_identity:
            said = said.coarse()
        if isinstance(said, SparseSignal):
            projected = self.vocabulary.project_sparse(said)
            if bool(speaks.all()):
                return projected
            ids = targets[:, None].repeat(1, projected.ids.shape[1])
            weights = torch.zeros(ids.shape)
            weights[:, 0] = 1.0
            ids[speaks] = projected.ids
            weights[speaks] = projected.weights
            rest = None
            if projected.rest is not None:
                rest = torch.zeros(targets.shape[0])
                rest[speaks] = projected.rest
            return SparseSignal(ids, weights, projected.unbiased, rest, ~speaks)
        if isinstance(said, CoarseSignal):
            coarse = self.vocabulary.project_coarse(said)
            if bool(speaks.all()):
                return coarse
            ids = targets[:, None].repeat(1, coarse.ids.shape[1])
            listed = torch.full(ids.shape, float("-inf"))
            listed[:, 0] = 0.0
            ids[speaks], listed[speaks] = coarse.ids, coarse.logprobs
            others = torch.zeros(targets.shape[0])
            others[speaks] = coarse.rest
            return CoarseSignal(ids, listed, others, ~speaks)
        logprobs = self.vocabulary.project_dense(said.logprobs)[:, : self.vocabulary.student_used]
        if bool(speaks.all()):
            return DenseSignal(logprobs)
        whole = torch.full((targets.shape[0], logprobs.shape[1]), float("-inf"))
        whole.scatter_(1, targets[:, None], 0.0)
        whole[speaks] = logprobs
        return DenseSignal(whole, ~speaks)


@dataclass(frozen=True)
class _Row:
    """One sequence in the student's ids; every tensor is [tokens]."""

    ids: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    speaks: torch.Tensor
    source: torch.Tensor
    taken: torch.Tensor | None = None
    chunk: torch.Tensor | None = None
    members: tuple[torch.Tensor, torch.Tensor] | None = None
    chunks: int = 0
    covered: torch.Tensor | None = None


def _aligned_row(alignment: Alignment, sequences: Sequences, index: int) -> _Row:
    """One sequence in the ids of a student with another tokenizer."""
    row = alignment.row(sequences, index)
    where = torch.arange(len(row.ids))
    begins = torch.ones(len(row.ids), dtype=torch.bool)
    begins[1:] = row.segments[1:] != row.segments[:-1]
    positions = where - torch.where(begins, where, 0).cummax(0).values if len(where) else where
    return _Row(
        row.ids,
        positions,
        row.targets,
        row.speaks,
        row.source,
        row.taken,
        row.chunk,
        row.members,
        row.chunks,
        row.covered,
    )


def _spread(said: list[CoarseSignal], speaks: torch.Tensor) -> CoarseSignal:
    """Signals of the positions that ``speaks`` [N] names, one after the other; the others have the event "any id" alone."""
    width = max(signal.ids.shape[1] for signal in said)
    count = len(speaks)
    # Of whole distributions every position lists the same ids.
    one = said[0].ids[:1] if all(signal.ids.stride(0) == 0 for signal in said) and len(said[0].ids) else None
    logprobs = torch.full((count, width), float("-inf"))
    rest = torch.ones(count)
    ids = one.expand(count, width) if one is not None else torch.zeros((count, width), dtype=torch.int64)
    places = speaks.nonzero().squeeze(1)
    at = 0
    for signal in said:
        here = places[at : at + len(signal)]
        logprobs[here, : signal.ids.shape[1]] = signal.logprobs.float()
        rest[here] = signal.rest.float()
        if one is None:
            ids[here, : signal.ids.shape[1]] = signal.ids
        at += len(signal)
    return CoarseSignal(ids, logprobs, rest)
