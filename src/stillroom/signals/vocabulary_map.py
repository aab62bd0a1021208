"""The map from the teacher's ids to the student's, and signals carried through it.

A teacher's id that the student lacks is written by the student as several sub-tokens. At the position where the teacher would
say the id, the student has to say its first sub-token: so the mass of a dropped id goes to the first sub-token of its
expansion. That is exactly what the teacher predicts about the student's next token, and no mass is lost. An id that can
never occur (a padding row of the teacher's embedding) has no sub-tokens; the little mass that a teacher gives it is left
out.

Legend: L tokens, N positions, K entries per position, V_t teacher's ids, V_s rows of the student's output.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stillroom.core import files
from stillroom.core.errors import VocabularyMismatch
from stillroom.models.compute import widest
from stillroom.signals.signal import LEAST, CoarseSignal, SparseSignal

NEVER = -1


@dataclass(frozen=True, eq=False)
class VocabularyMap:
    """Teacher's ids to student's ids.

    Attributes:
        offsets: Where the sub-tokens of each teacher's id begin in ``pieces``, [V_t + 1] int64.
        pieces: The sub-tokens of all ids one after the other, int64.
        student_size: Rows of the student's output, with padding rows.
        student_used: Rows that are real ids; they come first.
    """

    offsets: torch.Tensor
    pieces: torch.Tensor
    student_size: int
    student_used: int

    @classmethod
    def identity(cls, size: int) -> VocabularyMap:
        """The map of a student that has the teacher's vocabulary."""
        return cls(torch.arange(size + 1), torch.arange(size), size, size)

    @classmethod
    def from_pieces(cls, pieces: Sequence[Sequence[int]], student_size: int, student_used: int) -> VocabularyMap:
        """The map of expansions: one list of student's ids a teacher's id; an empty one for an id that never
        occurs.
        """
        counts = torch.tensor([len(part) for part in pieces], dtype=torch.int64)
        offsets = torch.zeros(len(pieces) + 1, dtype=torch.int64)
        offsets[1:] = counts.cumsum(0)
        flat = torch.tensor([piece for part in pieces for piece in part], dtype=torch.int64)
        return cls(offsets, flat, student_size, student_used)

    @property
    def teacher_size(self) -> int:
        """Ids of the teacher."""
        return self.offsets.shape[0] - 1

    @functools.cached_property
    def lengths(self) -> torch.Tensor:
        """Pieces of each teacher's id, [V_t] int64."""
        return self.offsets[1:] - self.offsets[:-1]

    @functools.cached_property
    def first(self) -> torch.Tensor:
        """The student's id of the first sub-token of each teacher's id, [V_t] int64; -1 for an id that never occurs."""
        first = torch.full((self.teacher_size,), NEVER, dtype=torch.int64)
        occurs = self.lengths > 0
        first[occurs] = self.pieces[self.offsets[:-1][occurs]]
        return first

    @functools.cached_property
    def is_identity(self) -> bool:
        """Whether every id stands for itself."""
        size = self.teacher_size
        return (
            size == self.student_size
            and torch.equal(self.first, torch.arange(size))
            and bool((self.lengths == 1).all())
        )

    @functools.cached_property
    def _kinds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's ids that occur, and those of them whose first sub-token is no other's; both ascending, int64."""
        occurs = self.first != NEVER
        sharing = torch.bincount(self.first[occurs], minlength=self.student_size)
        alone = occurs & (sharing[self.first.clamp(min=0)] == 1)
        return occurs.nonzero().squeeze(1), alone.nonzero().squeeze(1)

    def expand(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Teacher's ids in the student's sub-tokens.

        Args:
            ids: Teacher's ids, [L].

        Returns:
            Student's ids, and for each the index of the teacher's token that it came from; both int64 of one length.

        Raises:
            VocabularyMismatch: An id is not one that the student can say.
        """
        ids = ids.to(torch.int64)
        outside = (ids < 0) | (ids >= self.teacher_size)
        lengths = torch.where(outside, 0, self.lengths[ids.clamp(0, self.teacher_size - 1)])
        if bool((lengths == 0).any()):
            wrong = int(ids[(lengths == 0)][0])
            raise VocabularyMismatch(
                f"The text has the teacher's id {wrong}, which the student has no sub-tokens for.",
                "Make the corpus and the student again with the same teacher.",
            )
        source = torch.repeat_interleave(torch.arange(ids.shape[0]), lengths)
        within = torch.arange(source.shape[0]) - (lengths.cumsum(0) - lengths)[source]
        return self.pieces[self.offsets[:-1][ids][source] + within], source

    def project_sparse(self, signal: SparseSignal) -> SparseSignal:
        """A sparse signal in the student's ids; in an unbiased one the same id may occur more than once, its weights add up.

        What an unbiased one draws of ids that never occur is left out, and the rest not normalised again: by a mass that is
        itself drawn the estimate would be biased. So its expectation is the distribution over the student's ids times the mass
        on ids that occur: a position counts as much as that, and its loss is least where :meth:`project_dense` has it.

        In a biased one the ids of one first sub-token are put together, and the rest stays: what part of it falls on sub-tokens
        that are listed is not known. Where all of it does, for no other sub-token begins an id, nothing is left for others.
        """
        if self.is_identity:
            return signal
        probabilities, rest = (signal.weights, None) if signal.unbiased else signal.shares()
        ids = self.first.to(signal.ids.device)[signal.ids]
        never = ids == NEVER
        ids, weights = ids.masked_fill(never, 0), probabilities.masked_fill(never, 0.0)
        if rest is None:
            return replace(signal, ids=ids, weights=weights)
        ids, weights = _together(ids, weights)
        elsewhere = (weights > 0).sum(1) < int((self._sharing > 0).sum())
        # What can never occur is left out, and what remains is all there is.
        return replace(signal, ids=ids, weights=weights, rest=torch.where(elsewhere | (weights.sum(1) == 0), rest, 0.0))

    @functools.cached_property
    def _sharing(self) -> torch.Tensor:
        """How many of the teacher's ids have each of the student's ids as their first sub-token, [V_s] int64."""
        return torch.bincount(self.first[self.first != NEVER], minlength=self.student_size)

    def project_coarse(self, signal: CoarseSignal) -> CoarseSignal:
        """A coarse signal in the student's ids, exact and with distinct ids.

        Entries with one first sub-token are summed. A first sub-token that an id has too which is not listed is not known
        exactly any more: its mass goes to all others together. Mass of listed ids that never occur is left out, and the rest
        normalised again, as :meth:`project_dense` does. How much of the others' mass is on such ids the list does not say; of
        a share u the statement is off by about u² / 2 nats or less where the others have half of the mass.
        """
        if self.is_identity:
            return signal
        device = signal.ids.device
        if widest(device) != torch.float64:
            return self.project_coarse(signal.to(torch.device("cpu"))).to(device)
        listed = signal.listed
        first = self.first.to(device)[torch.where(listed, signal.ids, 0)]
        never = listed & (first == NEVER)
        kept = listed & ~never
        mass = torch.where(kept, signal.logprobs.double().exp(), 0.0)
        # What fills a list gets ids behind the vocabulary, so that it is put together with nothing.
        behind = self.student_size + torch.arange(first.shape[1], device=device)
        ids, order = torch.where(kept, first, behind).sort(dim=1)
        slot = _slots(ids)
        summed = torch.zeros_like(mass).scatter_add_(1, slot, mass.gather(1, order))
        members = torch.zeros_like(ids).scatter_add_(1, slot, torch.ones_like(ids))
        pieces = torch.full_like(ids, self.student_size).scatter_(1, slot, ids)
        real = pieces < self.student_size
        pieces = torch.where(real, pieces, 0)
        known = real & (members == self._sharing.to(device)[pieces])
        rest = signal.rest.double() + torch.where(real & ~known, summed, 0.0).sum(1)
        exact = torch.where(known, summed, 0.0)
        # Where every id that occurs is listed, the others are ids that never occur.
        rest = rest.masked_fill(kept.sum(1) == len(self._kinds[0]), 0.0)
        # A teacher that rules out all that occurs asks for nothing: the event "any id" alone.
        silent = says_nothing((exact.sum(1) + rest).log(), self.teacher_size)
        exact, rest = exact.masked_fill(silent[:, None], 0.0), rest.masked_fill(silent, 1.0)
        total = exact.sum(1) + rest
        logprobs = (exact / total[:, None]).log().to(signal.logprobs.dtype)
        # A sum that underflowed is no filler, but as good as one: its mass is nothing.
        return CoarseSignal(pieces, logprobs, (rest / total).to(signal.rest.dtype), signal.certain)

    def project_dense(self, logprobs: torch.Tensor) -> torch.Tensor:
        """Log-probabilities [N, V_t] as log of summed mass over the student's ids, [N, V_s]; -inf where there is
        none.

        The mass on ids that never occur is left out and the rest normalised again; where the teacher rules out all
        that occurs, all are -inf: nothing is said there, and nothing is to be learned.
        """
        if self.is_identity:
            return logprobs
        occurs, alone = (ids.to(logprobs.device) for ids in self._kinds)
        first = self.first.to(logprobs.device)
        said = logprobs if len(occurs) == len(first) else logprobs.index_select(1, occurs)
        # Sums of probabilities lose the small ones to rounding; against the row's largest they keep their digits.
        largest = said.max(dim=1, keepdim=True).values.clamp_min(torch.finfo(logprobs.dtype).min)
        mass = torch.zeros(logprobs.shape[0], self.student_size, dtype=logprobs.dtype, device=logprobs.device)
        mass.index_add_(1, first[occurs], (said - largest).exp_())
        projected = mass.log_().add_(largest)
        # An id that is alone keeps its own value, which may be smaller than a float's least exponential.
        projected.index_copy_(1, first[alone], logprobs.index_select(1, alone))
        if said is logprobs:
            return projected
        total = projected.logsumexp(1, keepdim=True)
        return projected - total.masked_fill(says_nothing(total, self.teacher_size), float("inf"))

    @property
    def merges(self) -> bool:
        """Whether some of the teacher's ids have one first sub-token, so that the student does not tell them apart there."""
        return bool((self._sharing > 1).any())

    def entropy(self, scores: torch.Tensor) -> torch.Tensor:
        """Entropy of distributions as the student's ids see them, [N] nats, times the mass on ids that occur.

        That is what the cross-entropy to a sparse signal has in it besides the divergence, for the weights of such a signal sum
        to that mass (:meth:`project_sparse`).

        Args:
            scores: Log-probabilities or logits, [N, V_t].
        """
        logprobs = torch.log_softmax(scores, dim=1)
        mass = logprobs.index_select(1, self._kinds[0].to(logprobs.device)).logsumexp(1).exp()
        own = self.project_dense(logprobs)
        return -mass * torch.where(own > float("-inf"), own.exp() * own, 0.0).sum(1)

    def least_lost(self, signal: SparseSignal) -> torch.Tensor:
        """Of the entropy of the teacher's ids, what :meth:`entropy` does not have; estimated from drawn entries, [N] nats.

        The expectation is at most the true value: that is concave in the probabilities (Jensen's inequality), and a draw mostly
        has one of the ids that share a sub-token. No function of the draw is without bias, for probabilities under the codec's
        threshold leave nothing in it but what is linear in them.

        Args:
            signal: An unbiased one, in the teacher's ids.
        """
        ids, weights = _together(signal.ids, signal.weights)
        first, order = self.first.to(ids.device)[ids].sort(dim=1)
        weights = weights.gather(1, order)
        never = first == NEVER
        kept = weights.masked_fill(never, 0.0)
        slot = _slots(first)
        together = torch.zeros_like(kept).scatter_add_(1, slot, kept).gather(1, slot)
        merged = torch.xlogy(kept, together / kept.clamp_min(1e-30)).sum(1)
        gone = weights.masked_fill(~never, 0.0)
        mass = kept.sum(1)
        return merged - torch.xlogy(gone, gone).sum(1) - torch.xlogy(mass, mass)

    def save(self, path: Path) -> None:
        """Write as safetensors, atomically."""
        from safetensors.torch import save_file

        sizes = torch.tensor([self.teacher_size, self.student_size, self.student_used])
        with files.replacing(path) as beside:
            save_file(
                {"offsets": self.offsets.contiguous(), "pieces": self.pieces.contiguous(), "sizes": sizes}, beside
            )

    @classmethod
    def load(cls, path: Path) -> VocabularyMap:
        """Read what :meth:`save` wrote.

        Raises:
            VocabularyMismatch: The file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
            if "rules" in tensors:
                raise VocabularyMismatch(
                    f"{path} is of a student with another tokenizer than its teacher's.",
                    "Use a student with the teacher's tokenizer here.",
                )
            _, size, used = tensors["sizes"].tolist()
            return cls(tensors["offsets"], tensors["pieces"], size, used)
        except (SafetensorError, KeyError, FileNotFoundError, ValueError) as error:
            raise VocabularyMismatch(
                f"{path}: the vocabulary map cannot be read: {error}.", "Run the stage `shrink` again."
            ) from None


def says_nothing(total: torch.Tensor, ids: int) -> torch.Tensor:
    """Whether a teacher rules out all the ids that occur, from the logarithm of their mass, nats; of a vocabulary of ``ids``.

    What is ruled out is -inf, or the least that a dense cache stores (1e-38 for each id); what such ids are among each other
    means nothing.
    """
    floor = math.log(LEAST)
    return total.isneginf() | ((total > floor - 1e-3) & (total < floor + math.log(ids) + 1e-3))


def _together(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Entries [N, K] with every id once per position, its weights summed; what becomes free has weight 0."""
    ids, order = ids.sort(dim=1)
    slot = _slots(ids)
    summed = torch.zeros_like(weights).scatter_add_(1, slot, weights.gather(1, order))
    return torch.zeros_like(ids).scatter_(1, slot, ids), summed


def _slots(ascending: torch.Tensor) -> torch.Tensor:
    """The number of each distinct id of a position, from 0, at every entry that has it; ids are ascending, [N, K]."""
    begins = torch.zeros_like(ascending)
    begins[:, 1:] = (ascending[:, 1:] != ascending[:, :-1]).to(ascending.dtype)
    return begins.cumsum(1)
