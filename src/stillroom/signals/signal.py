"""What a teacher says about the next token.

Legend: N positions, V ids of the vocabulary, K entries a position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DenseSignal:
    """Every log-probability: ``logprobs`` [N, V], float32, nats."""

    logprobs: torch.Tensor

    def __len__(self) -> int:
        return self.logprobs.shape[0]


@dataclass(frozen=True)
class SparseSignal:
    """A sparse estimate of the distribution: ``ids`` [N, K] int64, ``weights`` [N, K] float32.

    A position with fewer than K entries is filled with weight 0 (and any valid id). The same id may stand more than once
    in a position; its weights add up.

    Attributes:
        ids: Vocabulary ids, [N, K].
        weights: Estimated probabilities, [N, K].
        unbiased: Whether the expectation of the weights is the teacher's distribution.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    unbiased: bool = True

    def __len__(self) -> int:
        return self.ids.shape[0]


Signal = DenseSignal | SparseSignal
