"""What the validation KL says of a teacher that is its own student: 0 within noise, whatever the codec is.

A teacher of known distributions is captured into a cache with each codec and measured as the training loop validates a
student: batches from the cache, forward KL from hidden states and output matrix, less the teacher's entropy where the loss
leaves it out.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import typing
from collections.abc import Callable
from pathlib import Path

import torch

from stillroom.corpus.sequences import Sequences
from stillroom.models.forward import Head
from stillroom.recipe.capture import Codec, HiddenCodec, ThresholdCodec, TopKCodec
from stillroom.signals.batches import BatchSource
from stillroom.signals.cache.hidden import OutputLayer
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import Signal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective

SEQUENCES, LENGTH, IDS, WIDTH = 240, 16, 2048, 48
SPREAD = 0.3
"""Standard deviation of the output matrix: the most probable 16 ids then have about half of the mass."""
RESOLUTION = 2e-6
"""Nats per token that sums of float32 losses of several nats cannot tell apart; codecs without sampling noise have it alone."""


def codecs() -> dict[str, Codec]:
    """Every kind of codec that a recipe can name, with its defaults, and settings that are read in another way."""
    kinds = typing.get_args(typing.get_args(Codec)[0])
    found: dict[str, Codec] = {kind().kind: kind() for kind in kinds}
    return found | {
        "threshold, 1/8": ThresholdCodec(tau=1 / 8),
        "threshold, 1/12, 2 draws": ThresholdCodec(tau=1 / 12, draws=2),
        "threshold, 1/12, head 4": ThresholdCodec(tau=1 / 12, head=4),
        "top_k, 1": TopKCodec(k=1),
    }


def self_kl(
    codec: Codec, seed: int = 0, planted: Callable[[Signal], Signal] = lambda signal: signal
) -> tuple[float, float]:
    """The validation KL of a teacher as its own student, nats per token, and its standard error over sequences.

    Args:
        codec: What is kept of each distribution.
        seed: Seed of teacher and sampling.
        planted: Changes the signals as they are read; only to plant an error.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix = SPREAD * torch.randn(IDS, WIDTH, generator=generator)
    # As a teacher in bfloat16 has them, which is what the codec `hidden` keeps.
    hidden = torch.randn(SEQUENCES, LENGTH - 1, WIDTH, generator=generator).bfloat16().float()
    one = torch.zeros(SEQUENCES, LENGTH, dtype=torch.int32)
    text = Sequences(
        torch.randint(IDS, (SEQUENCES, LENGTH), generator=generator),
        one,
        one == 0,
        one.clone(),
        one + 1,
        torch.zeros(1, dtype=torch.int32),
    )
    loss = FusedLoss(make_objective("forward_kl"), biased=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        writer = CacheWriter.open(Path(folder), _identity(codec, seed))
        for index, digest in enumerate(text.digests):
            if isinstance(codec, HiddenCodec):
                writer.take_output_layer(OutputLayer(Head(matrix)))
                writer.add_hidden(digest, hidden[index])
            else:
                writer.add(digest, hidden[index] @ matrix.T)
        writer.flush()
        source = BatchSource(text, VocabularyMap.identity(IDS), TeacherCache.open(Path(folder)))
        for index in range(SEQUENCES):
            batch = source.batch([index])
            assert batch.signal is not None
            batch = dataclasses.replace(batch, signal=planted(batch.signal))
            distances = loss(hidden[index], Head(matrix), batch.targets, batch.signal).distances
            found.append((float(distances.sum(dtype=torch.float64)) - batch.left_out) / len(distances))
    kls = torch.tensor(found, dtype=torch.float64)
    noise = float(kls.std()) / math.sqrt(SEQUENCES)
    return float(kls.mean()), math.hypot(noise, RESOLUTION)


def _identity(codec: Codec, seed: int) -> CacheIdentity:
    return CacheIdentity(
        teacher_digest="0" * 64,
        tokenizer_digest="1" * 64,
        vocabulary_size=IDS,
        temperature=1.0,
        codec=codec,
        seed=seed,
        dtype="float32",
        sequence_length=LENGTH,
    )
