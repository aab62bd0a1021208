"""Rows of several splits under one numbering: those of a corpus, then those that were written while a student was trained."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from stillroom.corpus.mapped import MappedSequences
from stillroom.corpus.sequences import Sequences


class JoinedSequences:
    """What training needs of :class:`stillroom.corpus.sequences.Sequences`, of several splits one behind the other.

    Args:
        splits: At least one; all with the first one's length or less.
    """

    def __init__(self, splits: Sequence[Sequences | MappedSequences]) -> None:
        self.splits = list(splits)
        self.begins = list(itertools.accumulate(map(len, self.splits), initial=0))
        """The number of each split's first row, and how many rows there are."""

    def __len__(self) -> int:
        return self.begins[-1]

    @property
    def length(self) -> int:
        """Tokens per sequence."""
        return self.splits[0].length

    @property
    def tokens(self) -> int:
        """Tokens of text: without padding and without what is repeated."""
        return sum(split.tokens for split in self.splits)

    @property
    def row_tokens(self) -> list[int]:
        """Tokens of each sequence without padding."""
        return [count for split in self.splits for count in split.row_tokens]

    def addresses_of(self, index: int) -> list[str]:
        """The addresses of one sequence's signal."""
        number, row = self._where(index)
        return self.splits[number].addresses_of(row)

    @property
    def addresses(self) -> list[list[str]]:
        """The addresses of each sequence's signal, in the order of its targets."""
        return [row for split in self.splits for row in split.addresses]

    def part(self, chosen: slice | list[int]) -> Sequences:
        """Some sequences of one split, in memory.

        Raises:
            ValueError: They are of several, or there are none.
        """
        indices = range(len(self))[chosen] if isinstance(chosen, slice) else chosen
        found = [self._where(index) for index in indices]
        numbers = {number for number, _ in found}
        if len(numbers) != 1:
            raise ValueError("the sequences are not of one split")
        return self.splits[numbers.pop()].part([row for _, row in found])

    def _where(self, index: int) -> tuple[int, int]:
        """The split that a sequence is in, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self.begins, index) - 1
        return number, index - self.begins[number]
