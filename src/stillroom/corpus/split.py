"""Which documents train, choose and measure."""

from __future__ import annotations

SPLITS = ("train", "validation", "heldout")
RULE = (
    "The first 52 bits of a document's SHA-256, as a number in [0, 1): below heldout_share it is held out, below the "
    "sum of both shares it validates, otherwise it trains. A split that would stay empty takes one of the largest."
)


def split_of(digests: list[str], validation_share: float, heldout_share: float) -> dict[str, str]:
    """The split of each document, by its digest alone; see ``RULE``.

    A document is never in two splits, and a corpus that grows keeps its old ones in theirs (but for one that had to be
    moved into a split that was empty).

    Args:
        digests: SHA-256 of each document, in hex, without repetition.
        validation_share: Share that validates.
        heldout_share: Share that is held out.
    """
    sides: dict[str, list[str]] = {name: [] for name in SPLITS}
    for digest in sorted(digests):
        number = int(digest[:13], 16) / 16**13
        if number < heldout_share:
            sides["heldout"].append(digest)
        else:
            sides["validation" if number < heldout_share + validation_share else "train"].append(digest)
    if len(digests) >= len(SPLITS):
        for name in ("train", "heldout", "validation"):
            if not sides[name]:
                largest = max(SPLITS, key=lambda side: len(sides[side]))
                # Training takes the highest digest, the others the lowest: what the shares would give them first.
                sides[name].append(sides[largest].pop(-1 if name == "train" else 0))
    return {digest: name for name, members in sides.items() for digest in members}
