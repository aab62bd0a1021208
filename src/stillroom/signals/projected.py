"""The teacher's entropy over the ids that its student has, of the pieces that a student is validated on.

A loss on a sample of the teacher's distribution leaves its entropy out. Where several of the teacher's ids have one first
sub-token, or some never occur, that is the entropy of another distribution than the one that the cache has the entropy of; and
the sample does not tell it (:meth:`stillroom.signals.vocabulary_map.VocabularyMap.least_lost`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.core import files
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.vocabulary_map import VocabularyMap

FORMAT = 1


@dataclass(frozen=True)
class ProjectedEntropy:
    """Summed over the positions of each piece, nats.

    Attributes:
        pieces: By address.
        lost: What the student's ids have less than the teacher's, nats per position: the mean over those pieces.
    """

    pieces: Mapping[str, float]
    lost: float

    def of(self, address: str, entropy: float, positions: int) -> float:
        """Of one piece; of one that was not measured, what the mean leaves of its entropy over the teacher's ids."""
        found = self.pieces.get(address)
        return entropy - self.lost * positions if found is None else found

    def save(self, path: Path, identity: str) -> None:
        """Write as JSON, atomically; ``identity`` as :func:`identity_of` has it."""
        files.write_json(path, {"identity": identity, "lost": self.lost, "pieces": dict(self.pieces)})

    @classmethod
    def load(cls, path: Path, identity: str) -> ProjectedEntropy | None:
        """What :meth:`save` wrote; None where that is missing, damaged or of something else."""
        try:
            kept = files.read_json(path)
            if kept["identity"] != identity:
                return None
            return cls({str(key): float(value) for key, value in kept["pieces"].items()}, float(kept["lost"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def identity_of(cache: CacheIdentity, vocabulary: VocabularyMap, addresses: Sequence[str]) -> str:
    """SHA-256 over all that projected entropies depend on."""
    return files.digest_json(
        {
            "format": FORMAT,
            "teacher": cache.model_dump(mode="json", exclude={"codec", "codec_version", "seed", "sequence_length"}),
            "first": files.digest_bytes(vocabulary.first.numpy().tobytes()),
            "pieces": sorted(set(addresses)),
        }
    )
