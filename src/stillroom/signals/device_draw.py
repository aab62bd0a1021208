"""The threshold codec's draw where the logits are: on a GPU, so that entries and not logits cross to the CPU.

The random numbers are those of the CPU's draw, in the same order, and so is the law: head ids are those with p ≥ tau,
and a tail id is kept where one of the points (u + j) tau falls on it. A sum in another order may move a point to the id beside.

Legend: N positions, V ids, E entries.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from stillroom.models.compute import widest
from stillroom.signals.cache.codec import SignalCodec
from stillroom.signals.cache.entry_model import Numbers
from stillroom.signals.cache.threshold import BLOCK, LEVELS_OF_TAU, Entries, Threshold
from stillroom.signals.cache.writer import CHUNK

PART_BYTES = 1 << 30
"""Of probabilities that exist at the same time."""


def draws_on(codec: SignalCodec[object], device: torch.device) -> bool:
    """Whether a codec's draw can be made on a device: sums over the vocabulary need float64 there."""
    return isinstance(codec, Threshold) and device.type != "cpu" and widest(device) == torch.float64


def positions_at_once(vocabulary_size: int) -> int:
    """Positions of a part, a multiple of the CPU's :data:`CHUNK`."""
    return max(1, PART_BYTES // (4 * vocabulary_size) // CHUNK) * CHUNK


@torch.no_grad()
def draw(codec: Threshold, scores: Iterable[torch.Tensor], random: np.random.Generator) -> tuple[Entries, float, int]:
    """Draw the entries of one sequence where its scores are.

    Args:
        codec: What to keep.
        scores: Logits or log-probabilities, [n, V] float32 on a device, some positions at a time; every part but the last is a
            multiple of :data:`CHUNK` positions.
        random: The sequence's random numbers.

    Returns:
        The entries, the summed entropy in nats (not finite where the scores are not), and the number of positions.
    """
    drawn: list[list[tuple[Numbers, Numbers, Numbers]]] = [[] for _ in range(codec.draws)]
    entropy, positions = 0.0, 0
    for part in scores:
        if not len(part):
            continue
        probabilities = torch.softmax(part, dim=1)
        entropy += _entropy(part, probabilities)
        positions += len(part)
        if not math.isfinite(entropy):
            break
        for number, columns in enumerate(_draw(codec, probabilities, random)):
            drawn[number].append(columns)
    none = (np.zeros(0, np.int64),) * 3
    parts = [none, *(part for one in drawn for part in one)]
    counts, ids, levels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Entries(counts, ids, levels), entropy, positions


def _entropy(scores: torch.Tensor, probabilities: torch.Tensor) -> float:
    """As :func:`stillroom.signals.cache.writer.summed_entropy`, on the device."""
    # Ids that are ruled out have no part in the entropy; 0 · -inf is no number.
    mean = torch.where(probabilities > 0, probabilities * scores, 0.0).sum(1)
    rows = scores.amax(dim=1) - probabilities.amax(dim=1).log() - mean
    # A NaN has no probability above 0.
    rows = torch.where(torch.isnan(scores).any(dim=1), torch.nan, rows)
    return float(rows.sum(dtype=torch.float64))


def _draw(
    codec: Threshold, probabilities: torch.Tensor, random: np.random.Generator
) -> list[tuple[Numbers, Numbers, Numbers]]:
    """Counts, ids and levels of some positions, of each draw. Overwrites the probabilities."""
    rows, size = probabilities.shape
    blocks = math.ceil(size / BLOCK)
    if blocks * BLOCK != size:
        probabilities = torch.nn.functional.pad(probabilities, (0, blocks * BLOCK - size))
    head = probabilities >= codec.tau
    if codec.head:
        head.scatter_(1, probabilities.topk(codec.head, dim=1).indices, True)
    head_rows, head_ids = torch.nonzero(head, as_tuple=True)
    values = probabilities[head_rows, head_ids].cpu().numpy()
    probabilities.masked_fill_(head, 0.0)
    rows_here, ids_here = head_rows.cpu().numpy(), head_ids.cpu().numpy()
    # The random numbers of the CPU's draw: of each chunk of positions, draw by draw, first for levels, then for the tail.
    edges = np.searchsorted(rows_here, np.arange(0, rows + CHUNK, CHUNK))
    levels = np.zeros((codec.draws, len(values)), dtype=np.int64)
    offsets = np.zeros((codec.draws, rows))
    for chunk, begin in enumerate(range(0, rows, CHUNK)):
        end = min(begin + CHUNK, rows)
        low, high = edges[chunk], edges[chunk + 1]
        for number in range(codec.draws):
            levels[number, low:high] = codec.levels_of(values[low:high], random)
            offsets[number, begin:end] = random.random(end - begin)
    by_block = probabilities.view(rows, blocks, BLOCK)
    found = []
    for number in range(codec.draws):
        with _sums_in_any_order():
            tail = codec.tail(by_block, torch.from_numpy(offsets[number]).to(by_block.device))
        tail_rows, tail_ids = (part.cpu().numpy() for part in tail)
        kept = levels[number] > 0  # a head entry below tau may be rounded to nothing
        all_rows = np.concatenate([rows_here[kept], tail_rows])
        order = np.argsort(all_rows, kind="stable")
        all_ids = np.concatenate([ids_here[kept], tail_ids])
        all_levels = np.concatenate([levels[number][kept], np.full(len(tail_ids), LEVELS_OF_TAU, np.int64)])
        found.append((np.bincount(all_rows, minlength=rows), all_ids[order], all_levels[order]))
    return found


@contextlib.contextmanager
def _sums_in_any_order() -> Iterator[None]:
    """A running sum has no deterministic kernel on CUDA; the draw is unbiased in whatever order it is made."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
