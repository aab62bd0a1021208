"""Cross-entropy on the text itself."""

from __future__ import annotations

import torch


def cross_entropy_chunk(logprobs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``−log q(target)`` in nats per token, and its gradient ``q − 1[target]`` with respect to the logits.

    Args:
        logprobs: The student's log-probabilities, [C, V] float32; they are overwritten.
        targets: Ids, [C].

    Returns:
        Losses [C] and the gradient [C, V] of their sum.
    """
    losses = -logprobs.gather(1, targets[:, None]).squeeze(1)
    gradient = logprobs.exp_()
    gradient.scatter_add_(1, targets[:, None], torch.full_like(losses[:, None], -1.0))
    return losses, gradient
