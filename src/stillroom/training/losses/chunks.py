"""Chunks of text compared as wholes: for a student whose tokenizer splits them otherwise than its teacher's.

Approximate likelihood matching (Minixhofer, Vulić & Ponti 2025, arXiv 2503.20083, equation 4) compares the probabilities of
a chunk's text, t of the teacher and s of the student, as those of a coin: with ``a = log t / τ``, ``x = log s / τ``,

    loss = τ · [eᵃ (a − x) + (1 − eᵃ) (log(1 − eᵃ) − log(1 − eˣ))]

It is 0 where both are equal. The factor τ keeps it in nats: the gradient by log s is ``(eˣ − eᵃ) / (1 − eˣ)``, which for large
τ is ``log t / log s − 1``, whatever τ is. log s is a sum over the chunk's tokens, so that each of them has the gradient of a
cross-entropy, times that number with its sign changed.
"""

from __future__ import annotations

import torch

LEAST = 1e-6
"""A chunk's surprisal over τ is at least this: a coin that always falls the same way has no gradient."""


def chunk_losses(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of chunks, and their derivatives by the student's log-probabilities.

    Args:
        teacher: Log-probabilities of the chunks, [C], nats.
        student: Likewise, the student's.
        temperature: τ.

    Returns:
        Losses [C] and derivatives [C].
    """
    a = (teacher / temperature).clamp_max(-LEAST)
    x = (student / temperature).clamp_max(-LEAST)
    other_a, other_x = -torch.expm1(a), -torch.expm1(x)
    # Of a chunk that the teacher rules out, as far as a float can tell, 0 · log 0 counts as 0, whatever the student predicts.
    chance = a.exp()
    said = torch.where(chance > 0, chance * (a - x), 0.0)
    losses = temperature * (said + other_a * (other_a.log() - other_x.log()))
    return losses, (x.exp() - a.exp()) / other_x
