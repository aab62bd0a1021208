"""Writes a cache, shard by shard, and goes on where a killed process stopped."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stillroom.core import files
from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.signals.cache.codec import SignalCodec, sampling_generator
from stillroom.signals.cache.hidden import Hidden, OutputLayer
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.index import FROM_SEQUENCES
from stillroom.signals.cache.manifest import (
    JOURNAL,
    NAME,
    REWRITE_SHARE,
    VERSION,
    Manifest,
    append_entry,
    read_model,
    write_model,
)
from stillroom.signals.cache.observed import Observed
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.registry import make_codec
from stillroom.signals.cache.shard import Encoded, write_shard
from stillroom.signals.signal import CoarseSignal

CHUNK = 64
"""Positions whose probabilities exist at the same time: they stay in the CPU's cache."""


class CacheWriter:
    """Adds signals to a cache. A shard counts once the manifest names it; what came after the last one is lost in a kill.

    Use :meth:`open`.
    """

    def __init__(self, folder: Path, manifest: Manifest, there: set[str]) -> None:
        self.folder = folder
        self.where = str(folder)
        """For messages."""
        self._manifest = manifest
        self._there = there
        self._codec = make_codec(
            manifest.identity.codec, manifest.identity.vocabulary_size, manifest.identity.codec_version
        )
        self._learned = manifest.model is not None
        if manifest.model is not None:
            self._codec.recall(read_model(folder, manifest.model))
        self._waiting: list[_Waiting] = []
        self._sampled: set[str] = set()
        self._lock = threading.Lock()
        self._saved = len(manifest.shards)

    @classmethod
    def open(cls, folder: Path, identity: CacheIdentity) -> CacheWriter:
        """Make a cache, or go on with one.

        Shards that are damaged are quarantined, so that their sequences are missing again. A cache of format 2 is opened too,
        if teacher, codec and temperature are the same, but nothing can be added to it.

        Raises:
            SignalError: The folder holds a cache of another teacher, codec, temperature or seed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(folder)
        if not (folder / NAME).is_file():
            manifest = Manifest(identity=identity)
            manifest.save(folder)
            return cls(folder, manifest, set())
        manifest = Manifest.load(folder)
        difference = manifest.identity.difference(identity, manifest.version)
        if difference is not None:
            raise SignalError(
                f"{folder} holds a cache that was captured otherwise: {difference}.",
                "Name another folder as `capture.path`, or change the recipe to what the cache holds.",
            )
        TeacherCache.verify_folder(folder)
        cache = TeacherCache.open(folder)
        if (folder / JOURNAL).exists():
            # Its last line may be cut off, and nothing may be written behind that.
            cache.manifest.save(folder)
        return cls(folder, cache.manifest, set(cache.digests))

    def close(self) -> None:
        """Write what is waiting, the whole manifest, and the index where there are many sequences."""
        self.flush()
        manifest = self._manifest
        if manifest.version != VERSION:
            return
        if (self.folder / JOURNAL).exists() or (manifest.index is None and len(self._there) >= FROM_SEQUENCES):
            index = None
            if len(self._there) >= FROM_SEQUENCES:
                without = manifest.model_copy(update={"index": None})
                index = TeacherCache(self.folder, without).save_index()
            self._manifest = manifest.model_copy(update={"index": index})
            self._manifest.save(self.folder)
            self._saved = len(self._manifest.shards)

    def __contains__(self, digest: str) -> bool:
        return digest in self._there or digest in self._sampled

    @property
    def version(self) -> int:
        """Format of the cache."""
        return self._manifest.version

    @property
    def identity(self) -> CacheIdentity:
        """What the cache was made of and how."""
        return self._manifest.identity

    @property
    def next_shard(self) -> int:
        """The number that the next shard will have."""
        return 1 + max((entry.number for entry in self._manifest.shards), default=-1)

    def before(self, shard: int) -> set[str]:
        """Addresses that are in shards with a lower number than ``shard``."""
        return TeacherCache(self.folder, self._manifest).before(shard)

    def missing(self, digests: list[str]) -> list[str]:
        """Those sequences, in order, that the cache does not hold."""
        return [digest for digest in digests if digest not in self._there]

    def add(self, digest: str, scores: torch.Tensor | Iterable[torch.Tensor]) -> bool:
        """Sample one sequence's signal; it is written with the next :meth:`flush`.

        Args:
            digest: The sequence's address.
            scores: The teacher's log-probabilities or logits, [N, V] float32 on the CPU, at once or some positions
                at a time: what is the same for all ids of a position does not count.

        Returns:
            Whether the scores were finite; others are not added.
        """
        self._require_writable()
        size = self._manifest.identity.vocabulary_size
        entropy = 0.0
        positions = 0

        def probabilities() -> Iterator[torch.Tensor]:
            nonlocal entropy, positions
            for chunk in torch.split(scores, CHUNK) if isinstance(scores, torch.Tensor) else scores:
                if chunk.shape[1] != size:
                    raise SignalError(
                        f"The teacher gives {chunk.shape[1]} ids, and the cache has {size}.", "Use another cache."
                    )
                bent = torch.softmax(chunk, dim=1)
                entropy += summed_entropy(chunk, bent)
                positions += chunk.shape[0]
                if not math.isfinite(entropy):
                    return
                yield bent

        sample = self._codec.sample(probabilities(), sampling_generator(self._manifest.identity.seed, digest))
        if not math.isfinite(entropy):
            return False
        self._wait(digest, positions, entropy, sample)
        return True

    def add_listed(self, digest: str, signal: CoarseSignal) -> None:
        """Keep one sequence's signal as a teacher listed it; it is written with the next :meth:`flush`.

        Args:
            digest: The sequence's address.
            signal: Of its N positions.

        Raises:
            SignalError: It contradicts itself; or the cache stores something else.
        """
        self._require_writable()
        if not isinstance(self._codec, Observed):
            raise SignalError(
                "The teacher lists its most probable tokens, and the cache stores something else.",
                "Capture with `codec: {kind: observed}`.",
            )
        sample = self._codec.observe(signal)
        events = torch.cat([sample.logprobs, sample.rest.log()[:, None]], dim=1).double()
        entropy = -float(torch.where(events > float("-inf"), events.exp() * events, 0.0).sum())
        self._wait(digest, len(sample), entropy, sample)

    def take_output_layer(self, layer: OutputLayer) -> None:
        """The output layer behind hidden states that will be added; needed once, before the first.

        Raises:
            SignalError: The cache stores no hidden states.
            CacheDamaged: The cache has another output layer.
        """
        codec = self._hidden()
        if codec.layer is None:
            codec.layer = layer
        elif not torch.equal(codec.layer.head.matrix, layer.head.matrix.cpu()):
            raise CacheDamaged(
                f"{self.where} has another output layer than the teacher.", "Name another folder as `capture.path`."
            )

    def add_hidden(self, digest: str, hidden: torch.Tensor) -> bool:
        """Keep one sequence's hidden states; they are written with the next :meth:`flush`.

        Args:
            digest: The sequence's address.
            hidden: The teacher's last hidden states, [N, H].

        Returns:
            Whether the logits of what is kept were finite; others are not added.
        """
        self._require_writable()
        codec = self._hidden()
        if codec.layer is None:
            raise SignalError("Hidden states need the teacher's output layer.", "Call `take_output_layer` first.")
        kept = codec.keep(hidden)
        entropy = sum(summed_entropy(part, torch.softmax(part, dim=1)) for part in codec.layer.logits(kept))
        if not math.isfinite(entropy):
            return False
        self._wait(digest, len(kept), entropy, kept)
        return True

    @property
    def codec(self) -> SignalCodec[Any]:
        """What is kept of each distribution."""
        return self._codec

    def random_of(self, digest: str) -> np.random.Generator:
        """The random numbers of one sequence."""
        return sampling_generator(self._manifest.identity.seed, digest)

    def add_sample(self, digest: str, positions: int, entropy: float, sample: Any) -> bool:
        """Add a sample that was drawn elsewhere with :attr:`codec` and :meth:`random_of`, as :meth:`add` does.

        Args:
            digest: The sequence's address.
            positions: N.
            entropy: Summed, nats.
            sample: As the codec makes it.
        """
        self._require_writable()
        if not math.isfinite(entropy):
            return False
        self._wait(digest, positions, entropy, sample)
        return True

    def _hidden(self) -> Hidden:
        if not isinstance(self._codec, Hidden):
            raise SignalError("The cache stores no hidden states.", "Capture with `codec: {kind: hidden}`.")
        return self._codec

    def _require_writable(self) -> None:
        if self.version != VERSION:
            raise SignalError(
                f"{self.folder} holds a cache of format {self.version}, which is read and not written any more.",
                "Name another folder as `capture.path`.",
            )

    def _wait(self, digest: str, positions: int, entropy: float, sample: Any) -> None:
        held = _Waiting(digest, positions, entropy, sample)
        # Not into a list that another thread is just writing.
        with self._lock:
            self._waiting.append(held)
            self._sampled.add(digest)

    def flush(self) -> None:
        """Write what is waiting as one shard, then the manifest that names it.

        It may run on another thread while sequences are added; no two of them at once.
        """
        with self._lock:
            waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        update: dict[str, Any] = {}
        if not self._learned:
            learned = self._codec.learn([sequence.sample for sequence in waiting])
            update["model"] = write_model(self.folder, learned) if learned else None
            self._learned = True
        entry = write_shard(self.folder, self.next_shard, self._encoded(waiting))
        # An index of fewer shards is not the cache's any more.
        update |= {"shards": (*self._manifest.shards, entry), "index": None}
        reread = "model" in update or self._manifest.index is not None
        self._manifest = self._manifest.model_copy(update=update)
        count = len(self._manifest.shards)
        if reread or (count - self._saved) * REWRITE_SHARE >= count:
            self._manifest.save(self.folder)
            self._saved = count
        else:
            append_entry(self.folder, entry)
        written = {sequence.digest for sequence in waiting}
        with self._lock:
            self._there |= written
            self._sampled -= written

    def _encoded(self, waiting: list[_Waiting]) -> list[Encoded]:
        """Sequences, packed."""
        return [
            Encoded(sequence.digest, sequence.positions, sequence.entropy, self._codec.pack(sequence.sample))
            for sequence in waiting
        ]


@dataclass(frozen=True)
class _Waiting:
    """A sequence that is sampled and not yet written."""

    digest: str
    positions: int
    entropy: float
    sample: Any


def summed_entropy(scores: torch.Tensor, probabilities: torch.Tensor) -> float:
    """Entropy of the distributions softmax(scores), summed, nats; not finite where the scores are not.

    ``H = log Σ exp s − Σ p s``, and ``log Σ exp s`` is ``s − log p`` of any id; of the most probable one it is exact.
    """
    if not scores.shape[0]:
        return 0.0
    best, highest = probabilities.amax(dim=1), scores.amax(dim=1)
    mean = torch.from_numpy(np.einsum("nv,nv->n", probabilities.numpy(), scores.numpy()))
    if not bool(torch.isfinite(mean).all()):
        # Ids that are ruled out have no part in the entropy; 0 · -inf is no number.
        mean = torch.where(probabilities > 0, probabilities * scores, 0.0).sum(1)
    return float((highest - best.log() - mean).sum(dtype=torch.float64))
