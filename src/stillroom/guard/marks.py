"""Tracing a mark: does a model favour the words that the owner's key lists?

The weights are made first and without the key: for every word, how probable the suspect makes it, minus how probable a
reference model makes it that never saw marked text (the owner's unmarked model, a control, the suspect's base). Then the key
is opened. Under the null hypothesis the key's fair coins are independent of the weights, so that with T the sum of weight
times (listed - 1/2), Hoeffding's bound p <= exp(-2 T^2 / sum of squared weights) holds exactly, for any weights. Holm over
keys, Bonferroni over the months that a key may have served.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from stillroom.core import files
from stillroom.core.byte_tokens import bytes_of
from stillroom.core.errors import UsageError
from stillroom.core.marks import MarkKey, is_word
from stillroom.guard.findings import Finding
from stillroom.guard.marks_bounds import hoeffding_bound

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillroom.models.load import LoadedTeacher

LEVEL = -6.0
"""log10 of the p-value from which a finding says that a mark is there."""
CONTEXT = 256
"""Tokens of context that a model reads at once."""


def words_of(tokenizer: PreTrainedTokenizerFast) -> dict[int, bytes]:
    """Ids of a tokenizer's words (:func:`stillroom.core.marks.is_word`) and their bytes."""
    vocabulary = tokenizer.get_vocab()
    byte_level = any(token.startswith("\u0120") for token in vocabulary)
    found: dict[int, bytes] = {}
    for token, index in vocabulary.items():
        if byte_level:
            piece = bytes_of(token) or b""
        else:
            piece = token.replace("\u2581", " ").encode()
        if index not in tokenizer.all_special_ids and is_word(piece):
            found[index] = piece
    return found


def probabilities(loaded: LoadedTeacher, text: str, tokens: int) -> dict[bytes, float]:
    """How probable a model makes each word on average, over the contexts of a text.

    Args:
        loaded: The model.
        text: Natural text that carries no mark.
        tokens: Contexts at most.
    """
    words = words_of(loaded.tokenizer)
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)[:tokens]
    if len(ids) < 2:
        raise UsageError("The text has no words.", "Give some thousand words of plain text.")
    rows = loaded.model.get_output_embeddings().weight.shape[0]
    total, count = torch.zeros(rows, dtype=torch.float64), 0
    for start in range(0, len(ids), CONTEXT):
        part = torch.tensor([ids[start : start + CONTEXT]])
        with torch.no_grad():
            logits = loaded.model(input_ids=part, use_cache=False).logits[0].float()
        total += torch.softmax(logits, -1).double().sum(0)
        count += part.shape[1]
    return _by_word(words, (total / count).tolist())


def frequencies(tokenizer: PreTrainedTokenizerFast, text: str) -> dict[bytes, float]:
    """How often each word is in a text, as a share of all its tokens."""
    words = words_of(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not ids:
        raise UsageError("The text has no words.", "Give some thousand words of the suspect's answers.")
    counts = Counter(ids)
    return _by_word(words, {index: counts[index] / len(ids) for index in counts})


def _by_word(words: Mapping[int, bytes], values: Sequence[float] | Mapping[int, float]) -> dict[bytes, float]:
    found: dict[bytes, float] = {}
    for index, word in words.items():
        value = values.get(index, 0.0) if isinstance(values, Mapping) else values[index]
        found[word] = found.get(word, 0.0) + value
    return found


def weights_against(suspect: Mapping[bytes, float], reference: Mapping[bytes, float]) -> dict[bytes, float]:
    """The suspect's weight of each word, minus the reference's: what the test sees besides the key."""
    words = sorted({*suspect, *reference})
    found = {word: suspect.get(word, 0.0) - reference.get(word, 0.0) for word in words}
    if not all(map(math.isfinite, found.values())):
        raise UsageError("A model's probabilities are not finite: it is damaged.", "Get the model again.")
    return found


def mark_score(weights: Mapping[bytes, float], key: MarkKey, period: str) -> tuple[float, float]:
    """log10 of Hoeffding's bound, and the number of standard deviations (a description), of one key in one month."""
    values = np.array(list(weights.values()))
    listed = np.array([key.listed(word, period) for word in weights], dtype=np.float64)
    total = float(np.dot(values, listed - 0.5))
    spread = math.sqrt(float(np.sum(values**2)) / 4)
    return hoeffding_bound(total, values), total / spread if spread else 0.0


def holm(values: Sequence[float]) -> list[float]:
    """Holm's adjustment of log10 p-values: valid over all of them together."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    adjusted = [0.0] * len(values)
    worst = -math.inf
    for place, index in enumerate(order):
        worst = max(worst, min(0.0, values[index] + math.log10(len(values) - place)))
        adjusted[index] = worst
    return adjusted


def trace(weights: Mapping[bytes, float], keys: Sequence[Path], periods: Sequence[str], how: str) -> list[Finding]:
    """Test weights, which were made without any key, under each key.

    Args:
        weights: See :func:`weights_against`.
        keys: Files of keys; opened here and not before.
        periods: Months in which the keys may have served.
        how: How the weights were made, in words.
    """
    from stillroom.core.marks import read_key

    digest = files.digest_json({word.hex(): value for word, value in weights.items()})
    opened = [read_key(path) for path in keys]
    if len({key.secret.commitment for key in opened}) != len(opened):
        raise UsageError("The same key is given twice.", "Give each key once.")
    scored = []
    for key in opened:
        results = [(*mark_score(weights, key, period), period) for period in periods]
        bound, deviations, period = min(results)
        scored.append((min(0.0, bound + math.log10(len(periods))), deviations, period))
    adjusted = holm([entry[0] for entry in scored])
    findings = []
    for key, (_, deviations, period), log10_p in zip(opened, scored, adjusted, strict=True):
        told = log10_p <= LEVEL
        findings.append(
            Finding(
                test="mark/trace",
                grade="A",
                verdict=f"learnt from text marked with the key {key.name}" if told else "cannot tell",
                null=f"the suspect and the reference were made independently of the secret key {key.name}",
                statistic={
                    "key": key.name,
                    "best_month": period,
                    "standard_deviations": round(deviations, 3),
                    "words": len(weights),
                    "weights_sha256": digest,
                    "weights": how,
                },
                log10_p=round(log10_p, 3),
                correction=f"Bonferroni over {len(periods)} months, Holm over {len(opened)} keys",
                cannot_conclude=(
                    "how much marked text there was, or through whose hands it came",
                    "that no marked text was learnt from, where it says `cannot tell`: ordinary training washes a mark out",
                    "anything, where the contexts or the reference model carry marked text themselves",
                ),
                parameters={"level_log10": LEVEL, "months": list(periods)},
                commitment=key.secret.commitment,
            )
        )
    return findings
