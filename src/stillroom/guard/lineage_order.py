"""Lineage by the order of training, exact: does the suspect remember best what the owner's run saw last?

The owner's run shuffled its sequences by its own secret. Whatever the suspect is, if it was made independently of that run,
its losses do not depend on the order. Sequences are paired: the one in place i with the one in place i + n/2. Given which two
make a pair, which of them came later is a fair coin. The signed ranks of the differences in loss (the suspect's minus a
reference model's, which only removes noise) are summed, and the sum is held against all signs (Chernoff's bound, no
approximation). Spearman's correlation of place and loss over all sequences is given beside it, with its normal
approximation.

It needs the suspect's log-likelihoods; it works through distillation on logits and into fresh weights (Kuditipudi et al.
2025, arXiv 2510.19796, have the test on likelihoods).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from stillroom.core.errors import UsageError
from stillroom.core.secret import Secret
from stillroom.corpus.sequences import Sequences
from stillroom.guard.findings import Finding
from stillroom.guard.lineage_match import open_model
from stillroom.guard.marks_bounds import Doubles, sign_flip_bound, signed_ranks

if TYPE_CHECKING:
    from stillroom.models.load import LoadedTeacher
    from stillroom.runs.run import Run

LEAST = 40
"""Sequences below which nothing can be told."""


@dataclass(frozen=True)
class OrderOfTraining:
    """What the test on the order of training came to.

    Attributes:
        log10_p: Decimal logarithm of the exact bound, at most 0.
        pairs: Pairs of sequences.
        later_better: Pairs of which the later sequence has the lower loss.
        spearman: Correlation of place and loss; negative where later is remembered better.
        spearman_log10_p: Its one-sided p by the normal approximation: a description, not the finding's p.
    """

    log10_p: float
    pairs: int
    later_better: int
    spearman: float
    spearman_log10_p: float


def training_order(places: np.ndarray, losses: Doubles, reference: Doubles) -> OrderOfTraining:
    """Test losses against the order of training.

    Args:
        places: Of each sequence, its place in the owner's order: a permutation of 0 .. n - 1, drawn at random.
        losses: The suspect's mean loss of each sequence, any unit.
        reference: The same of a reference model that does not depend on the order.

    Raises:
        UsageError: There are too few sequences, or a loss is not finite.
    """
    count = len(places)
    if count < LEAST:
        raise UsageError(
            f"The run trained on {count} sequences; at least {LEAST} are needed to tell anything from their order.",
            "Test a run on more text.",
        )
    if not (np.isfinite(losses).all() and np.isfinite(reference).all()):
        raise UsageError("A loss is not finite.", "The suspect or the reference model is damaged.")
    excess = np.empty(count)
    excess[places] = losses - reference  # by place
    half = count // 2
    # An odd one out is the last of the order.
    gained = excess[:half] - excess[half : 2 * half]
    by_place = np.argsort(np.argsort(excess, kind="stable"), kind="stable").astype(np.float64)
    spearman = float(np.corrcoef(np.arange(count), by_place)[0, 1])
    z = -spearman * math.sqrt(count - 1)
    return OrderOfTraining(
        log10_p=sign_flip_bound(signed_ranks(gained)),
        pairs=half,
        later_better=int((gained > 0).sum()),
        spearman=spearman,
        spearman_log10_p=_log10_normal_tail(z),
    )


def _log10_normal_tail(z: float) -> float:
    if z < 30:
        return math.log10(max(1e-300, 0.5 * math.erfc(z / math.sqrt(2))))
    return (-z * z / 2 - math.log(z * math.sqrt(2 * math.pi))) / math.log(10)


def places_of(secret: Secret, count: int, epochs: int) -> np.ndarray:
    """Of each sequence its place in the last pass of a run with this secret."""
    places = np.empty(count, np.int64)
    places[secret.permutation(f"order of pass {epochs - 1}", count)] = np.arange(count)
    return places


def sequence_losses(loaded: LoadedTeacher, texts: list[list[str]]) -> Doubles:
    """Mean loss per byte (nats) of each sequence, whose pieces are read on their own.

    Args:
        loaded: The model, with its own tokenizer.
        texts: By sequence, the texts of its pieces.
    """
    encoded = [
        (row, ids, len(text.encode()))
        for row, pieces in enumerate(texts)
        for text in pieces
        if len(ids := loaded.tokenizer.encode(text, add_special_tokens=False)) >= 2
    ]
    nats, sizes = np.zeros(len(texts)), np.zeros(len(texts))
    for part in _batches(encoded, loaded.model.get_output_embeddings().weight.shape[0]):
        longest = max(len(ids) for _, ids, _ in part)
        # Models are causal: padding on the right changes nothing before it.
        inputs = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids, _ in part])
        targets = torch.tensor([ids[1:] + [-100] * (longest - len(ids)) for _, ids, _ in part])
        with torch.no_grad():
            logits = loaded.model(input_ids=inputs, use_cache=False).logits[:, :-1].float()
        lost = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        for (row, _, size), own in zip(part, lost.reshape(targets.shape).double().sum(1).tolist(), strict=True):
            nats[row] += own
            sizes[row] += size
    losses: Doubles = nats / np.maximum(1, sizes)
    return losses


AT_ONCE = 1 << 25
"""Logits of one pass, at most (128 MiB)."""
Encoded = tuple[int, list[int], int]
"""Row, ids and bytes of a piece."""


def _batches(encoded: list[Encoded], vocabulary: int) -> Iterator[list[Encoded]]:
    """Pieces by length, as many together as :data:`AT_ONCE` allows."""
    part: list[Encoded] = []
    for piece in sorted(encoded, key=lambda piece: len(piece[1])):
        if part and (len(part) + 1) * len(piece[1]) * vocabulary > AT_ONCE:
            yield part
            part = []
        part.append(piece)
    if part:
        yield part


def texts_of(run: Run) -> list[list[str]]:
    """By training sequence, the texts of its pieces, as the run's corpus decodes them."""
    from stillroom.models.tokenizer import open_tokenizer

    folder = run.stage("corpus").path
    sequences = Sequences.load(folder / "train.safetensors")
    tokenizer = open_tokenizer(folder / "tokenizer")
    found: list[list[str]] = []
    for ids, segments in zip(sequences.ids.tolist(), sequences.segments.tolist(), strict=True):
        pieces: dict[int, list[int]] = {}
        for token, segment in zip(ids, segments, strict=True):
            if segment >= 0:
                pieces.setdefault(segment, []).append(token)
        found.append([str(tokenizer.decode(piece, skip_special_tokens=True)) for piece in pieces.values()])
    return found


def examine_order(
    suspect: Path, run: Run, reference: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Finding:
    """Test a suspect against the order in which a run was trained.

    Args:
        suspect: A Hugging Face folder or a GGUF file.
        run: The owner's run; its secret, corpus and trained student are needed.
        reference: A model that does not depend on the order; without it, the run's student before training.
        say: Called with progress.

    Raises:
        UsageError: The run fixes its seed, so that its order is no secret; or it trained on too few sequences.
        RunError: The secret is not here.
    """
    randomness = run.randomness
    if not isinstance(randomness, Secret):
        raise UsageError(
            f"{run.path}: the recipe fixes `seed: {randomness}`: anybody can repeat its order of training, so that the order "
            "proves nothing.",
            "Only a run without `seed` has a secret order.",
        )
    if run.stage("distill").record is None:
        raise UsageError(f"{run.path} was not trained yet.", f"Train it: stillroom distill {run.path}")
    texts = texts_of(run)
    places = places_of(randomness, len(texts), run.recipe.distill.epochs)
    say(f"losses of the suspect on {len(texts)} training sequences")
    losses = sequence_losses(open_model(suspect), texts)
    say("losses of the reference")
    if reference is None:
        name = "the run's student before training"
        held = sequence_losses(open_model(run.stage("shrink").path / "model"), texts)
    else:
        name = reference.name
        held = sequence_losses(open_model(reference), texts)
    return order_finding(training_order(places, losses, held), run.commitment, name)


def order_finding(result: OrderOfTraining, commitment: str | None, reference: str) -> Finding:
    """The finding of a test on the order of training."""
    from stillroom.guard.lineage_examine import LEVEL

    told = result.log10_p <= LEVEL
    return Finding(
        test="lineage/training-order",
        grade="A",
        verdict="made with this run" if told else "cannot tell",
        null="the suspect was made independently of this run's order of training, which its secret drew at random",
        statistic={
            "pairs": result.pairs,
            "later_better": result.later_better,
            "spearman": round(result.spearman, 5),
            "spearman_log10_p_normal": round(result.spearman_log10_p, 3),
            "reference": reference,
        },
        log10_p=round(result.log10_p, 3),
        correction="none: one statistic",
        cannot_conclude=(
            "who made the suspect, or by which method: weights, logits or text may have been the way",
            "that a model was not made with this run, where it says `cannot tell`",
            "anything, where the reference model itself depends on the order of training",
        ),
        parameters={"level_log10": LEVEL, "statistic": "signed ranks of pairs half an epoch apart, Chernoff's bound"},
        commitment=commitment,
    )
