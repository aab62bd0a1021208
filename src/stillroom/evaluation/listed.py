"""A teacher of whom only lists of its most probable tokens are known: what a fidelity measurement can say of it, and what not.

Legend: P positions, K listed ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stillroom.core.errors import SignalError
from stillroom.corpus.sequences import Sequences
from stillroom.signals.routed import Signals
from stillroom.signals.signal import CoarseSignal
from stillroom.signals.vocabulary_map import VocabularyMap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class ListedTeacher:
    """What was captured of a teacher behind an endpoint.

    Attributes:
        cache: Holds the held-out text, too.
        tokenizer: The teacher's.
        size: Ids of its vocabulary.
        parameters: As its config says.
    """

    cache: Signals
    tokenizer: PreTrainedTokenizerFast
    size: int
    parameters: int

    def of(self, row: Sequences, device: torch.device) -> CoarseSignal:
        """The teacher's lists at every position of a row that has a target.

        Raises:
            SignalError: They were not captured, or the cache holds something else.
        """
        signal, _ = self.cache.read(row.addresses[0])
        if not isinstance(signal, CoarseSignal):
            raise SignalError("The cache holds no lists of an endpoint.", "Capture again.")
        return signal.to(device)


class ListedSaid:
    """What such a teacher predicts at the positions of one chunk: :class:`stillroom.evaluation.fidelity.Said` for lists.

    Numbers of the whole distribution are bounds on one side: KL and the teacher's nats on the text are "at least".

    Args:
        signal: The lists, of P positions.
    """

    def __init__(self, signal: CoarseSignal) -> None:
        self._signal = signal
        self._projected: dict[VocabularyMap, CoarseSignal] = {}
        self._order = signal.logprobs.argmax(1, keepdim=True)

    @property
    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and id of the most probable token, both [P]: known exactly."""
        return (
            self._signal.logprobs.gather(1, self._order).squeeze(1),
            self._signal.ids.gather(1, self._order).squeeze(1),
        )

    def nats(self, targets: torch.Tensor) -> torch.Tensor:
        """−log p of the text's tokens, [P]; at least that where a token is not listed.

        Such a token is no more probable than the last of the list, or than all others together.
        """
        signal = self._signal
        hit = (signal.ids == targets[:, None]) & signal.listed
        known = torch.where(hit, signal.logprobs, 0.0).sum(1)
        least = torch.where(signal.listed, signal.logprobs, float("inf")).amin(1)
        bound = torch.minimum(least, signal.rest.log())
        return -torch.where(hit.any(1), known, bound)

    def from_itself(self) -> torch.Tensor:
        """KL(teacher ‖ teacher), [P]: zero."""
        signal = self._signal
        return torch.where(signal.listed, signal.logprobs.exp() * (signal.logprobs - signal.logprobs), 0.0).sum(1)

    def against(
        self, logprobs: torch.Tensor, vocabulary: VocabularyMap, chosen: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """KL(teacher ‖ student) at least, and the student's id of the teacher's most probable token, both [P].

        Args:
            logprobs: The student's, [P, V].
            vocabulary: From the teacher's ids to the student's.
            chosen: The chunk's positions that are compared; None: all.
        """
        if vocabulary not in self._projected:
            self._projected[vocabulary] = vocabulary.project_coarse(self._signal)
        signal = self._projected[vocabulary]
        # A token that is split is said by its first sub-token, whatever else begins with it.
        theirs = vocabulary.first.to(logprobs.device)[self.best[1]]
        if chosen is not None:
            signal, theirs = signal.rows_at(chosen), theirs[chosen]
        return signal.divergence_from(logprobs), theirs
