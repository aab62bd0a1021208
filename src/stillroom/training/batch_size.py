"""Tokens per optimizer step, where the recipe leaves them to us."""

from __future__ import annotations

import math

from stillroom.recipe.training import DistillConfig

PER_ROOT_TOKEN = 2.5
"""Tokens per step over the square root of the run's tokens.

The largest useful batch grows about with the square root of the tokens of the run and hardly with the model's size (Zhang et
al. 2024, arXiv 2410.21676). The factor is from the quickstart: over 40,960 tokens 512 per step did better than 1,024, over
81,920 both were good.
"""
FEWEST, MOST = 512, 65_536
"""Tokens per step at least and at most. A forward pass over fewer than 512 tokens uses a CPU badly."""


LEAST_CHUNK, MOST_CHUNK = 512, 8192
"""Positions whose logits exist at the same time, at least and at most, where the recipe leaves them to us."""
CHUNK_BYTES = 2 << 30
"""Of a GPU's memory, for the logits of a chunk."""
CHUNK_COPIES = 3
"""Float32 copies of a chunk's logits that the loss holds at its peak."""


def loss_chunk(config: DistillConfig, device: str, rows: int) -> int:
    """Positions whose logits exist at the same time.

    Args:
        config: The recipe's section.
        device: ``cpu``, ``cuda`` or ``mps``.
        rows: Rows of the output matrix.
    """
    if config.loss_chunk != "auto":
        return config.loss_chunk
    if device == "cpu":
        return LEAST_CHUNK
    fits = max(1, CHUNK_BYTES // (CHUNK_COPIES * 4 * rows))
    return min(MOST_CHUNK, max(LEAST_CHUNK, 1 << (fits.bit_length() - 1)))


def step_rows(config: DistillConfig, tokens: int, length: int) -> int:
    """Sequences per optimizer step.

    Args:
        config: The recipe's section.
        tokens: Tokens of the training text, without what pieces repeat and without padding.
        length: Tokens per sequence.
    """
    if config.batch_tokens != "auto":
        return max(1, config.batch_tokens // length)
    tokens_of_run = tokens * config.epochs
    return max(1, int(min(max(PER_ROOT_TOKEN * math.sqrt(tokens_of_run), FEWEST), MOST)) // length)


def pass_steps(config: DistillConfig, text_tokens: int, row_tokens: int, length: int) -> int:
    """Optimizer steps of one pass over the training text.

    Args:
        config: The recipe's section.
        text_tokens: As :func:`step_rows` takes them.
        row_tokens: The same with what pieces repeat and with padding.
        length: Tokens per sequence.
    """
    return -(-row_tokens // (step_rows(config, text_tokens, length) * length))


def micro_rows(config: DistillConfig, rows: int, length: int) -> int:
    """Sequences per forward pass of a step of ``rows`` sequences."""
    return rows if config.micro_batch_tokens is None else min(rows, max(1, config.micro_batch_tokens // length))


def forward_tokens(config: DistillConfig, tokens: int, length: int) -> int:
    """Tokens of a training's forward pass; arguments as in :func:`step_rows`."""
    return micro_rows(config, step_rows(config, tokens, length), length) * length
