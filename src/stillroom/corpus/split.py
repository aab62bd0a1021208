"""Which documents train, choose and measure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SPLITS = ("train", "validation", "heldout")
RULE = (
    "The first 52 bits of a document's SHA-256, as a number in [0, 1): below heldout_share it is held out, below the "
    "sum of both shares it validates, otherwise it trains. A split that would stay empty takes one of the largest."
)

DIGEST = 32
PART = 1 << 16


def split_of(digests: list[str], validation_share: float, heldout_share: float) -> dict[str, str]:
    """The split of each document, by its digest alone; see ``RULE``.

    A document is never in two splits, and a corpus that grows keeps its old ones in theirs (but for one that had to be
    moved into a split that was empty).

    Args:
        digests: SHA-256 of each document, in hex, without repetition.
        validation_share: Share that validates.
        heldout_share: Share that is held out.
    """
    known = list(digests)
    raw = np.frombuffer(b"".join(map(bytes.fromhex, known)), np.uint8).reshape(len(known), DIGEST)
    return {
        digest: SPLITS[side] for digest, side in zip(known, sides_of(raw, validation_share, heldout_share), strict=True)
    }


def sides_of(digests: Array, validation_share: float, heldout_share: float) -> Array:
    """The split of each document as an index of ``SPLITS``, [D] uint8; see :func:`split_of`.

    Args:
        digests: SHA-256 of each document, without repetition, [D, 32] uint8.
        validation_share: Share that validates.
        heldout_share: Share that is held out.
    """
    train, validation, heldout = range(len(SPLITS))
    sides = np.full(len(digests), train, np.uint8)
    for begin in range(0, len(digests), PART):
        first = np.ascontiguousarray(digests[begin : begin + PART, :8]).view(">u8")[:, 0]
        number = (first >> np.uint64(12)).astype(np.float64) / 16**13
        part = sides[begin : begin + PART]
        part[number < heldout_share + validation_share] = validation
        part[number < heldout_share] = heldout
    if len(digests) >= len(SPLITS):
        for side in (train, heldout, validation):
            if not (sides == side).any():
                members = np.flatnonzero(sides == np.argmax(np.bincount(sides, minlength=len(SPLITS))))
                whole = np.ascontiguousarray(digests[members]).view(f"S{DIGEST}")[:, 0]
                # Training takes the highest digest, the others the lowest: what the shares would give them first.
                chosen = np.argmax(whole) if side == train else np.argmin(whole)
                sides[members[chosen]] = side
    return sides
