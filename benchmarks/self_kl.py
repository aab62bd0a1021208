"""What the validation KL says of a teacher that is its own student: 0 within noise, whatever codec and vocabulary are.

A teacher of known distributions is captured into a cache with each codec and measured as the training loop validates a
student: batches from the cache, forward KL from hidden states and output matrix, less the teacher's entropy where the loss
leaves it out. With a trimmed vocabulary the student gives each of its ids what the teacher gives all ids that begin with it.
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
from stillroom.signals.projected import ProjectedEntropy
from stillroom.signals.signal import Signal
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.training.losses.fused import FusedLoss
from stillroom.training.losses.registry import make_objective

SEQUENCES, LENGTH, IDS, WIDTH = 240, 16, 2048, 48
MUCH = 250
"""Ids of the teacher that never occur, in a vocabulary with much padding: no real one has a share worth naming on them."""
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


def vocabularies() -> dict[str, VocabularyMap]:
    """What a student may have of the teacher's ids: all; all but padding; five eighths, the others in two sub-tokens
    each, of which an eighth begin; both; and all but so much padding that a tenth of the mass is on it.
    """
    used, eighth = IDS * 5 // 8, IDS // 8
    split = [[index] if index < used else [index % eighth, index // 7 % used] for index in range(IDS)]
    rows = [[index] for index in range(IDS)]

    def padded(pieces: list[list[int]], padding: int, size: int, used: int) -> VocabularyMap:
        return VocabularyMap.from_pieces([*pieces[:-padding], *[[]] * padding], size, used)

    return {
        "whole": VocabularyMap.identity(IDS),
        "padded": padded(rows, 2, IDS, IDS - 2),
        "trimmed": VocabularyMap.from_pieces(split, used, used),
        "trimmed, padded": padded(split, 2, used + 8, used),
        "much padding": padded(rows, MUCH, IDS, IDS - MUCH),
    }


def self_kl(
    codec: Codec,
    seed: int = 0,
    planted: Callable[[Signal], Signal] = lambda signal: signal,
    vocabulary: VocabularyMap | None = None,
    *,
    measured: bool = True,
    sequences: int = SEQUENCES,
) -> tuple[float, float]:
    """The validation KL of a teacher as its own student, nats per token, and its standard error over sequences.

    Args:
        codec: What is kept of each distribution.
        seed: Seed of teacher and sampling.
        planted: Changes the signals as they are read; only to plant an error.
        vocabulary: From the teacher's ids to the student's; None: the student has all.
        measured: Whether the teacher's entropy over the student's ids is measured, as in a run with one local teacher.
        sequences: How many.
    """
    vocabulary = vocabulary or VocabularyMap.identity(IDS)
    generator = torch.Generator().manual_seed(seed)
    matrix = SPREAD * torch.randn(IDS, WIDTH, generator=generator)
    # As a teacher in bfloat16 has them, which is what the codec `hidden` keeps.
    hidden = torch.randn(sequences, LENGTH - 1, WIDTH, generator=generator).bfloat16().float()
    one = torch.zeros(sequences, LENGTH, dtype=torch.int32)
    text = Sequences(
        torch.randint(IDS // 4, (sequences, LENGTH), generator=generator),
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
        cache = TeacherCache.open(Path(folder))
        entropies = {
            digest: float(vocabulary.entropy(hidden[index] @ matrix.T).sum(dtype=torch.float64))
            for index, digest in enumerate(text.digests)
        }
        source = BatchSource(
            text, vocabulary, cache, ProjectedEntropy(entropies, 0.0) if measured else None, exact=True
        )
        for index in range(sequences):
            batch = source.batch([index])
            assert batch.signal is not None
            batch = dataclasses.replace(batch, signal=planted(batch.signal))
            student = vocabulary.project_dense(torch.log_softmax(hidden[index] @ matrix.T, dim=1))
            student = student[:, : vocabulary.student_used].contiguous()
            # Hidden states that choose a row each: the student's logits are these log-probabilities.
            rows = torch.eye(len(student))
            distances = loss(rows, Head(student.T), batch.targets, batch.signal).distances
            found.append((float(distances.sum(dtype=torch.float64)) - batch.left_out) / len(distances))
    kls = torch.tensor(found, dtype=torch.float64)
    noise = float(kls.std()) / math.sqrt(sequences)
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
