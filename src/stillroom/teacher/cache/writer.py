"""Writes a cache, shard by shard, and goes on where a killed process stopped. Knows nothing of models."""

from __future__ import annotations

from pathlib import Path

import torch

from stillroom import files
from stillroom.errors import SignalError
from stillroom.teacher.cache.codec import make_codec, sampling_generator
from stillroom.teacher.cache.identity import CacheIdentity
from stillroom.teacher.cache.manifest import NAME, Manifest
from stillroom.teacher.cache.reader import TeacherCache
from stillroom.teacher.cache.shard import Encoded, write_shard


class CacheWriter:
    """Adds signals to a cache. A shard counts once the manifest names it; what came after the last one is lost in a kill.

    Use :meth:`open`.
    """

    def __init__(self, folder: Path, manifest: Manifest, there: set[str]) -> None:
        self.folder = folder
        self._manifest = manifest
        self._there = there
        self._codec = make_codec(manifest.identity.codec, manifest.identity.vocabulary_size)
        self._waiting: list[Encoded] = []

    @classmethod
    def open(cls, folder: Path, identity: CacheIdentity) -> CacheWriter:
        """Make a cache, or go on with one.

        Shards that are damaged are quarantined, so that their sequences are missing again.

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
        difference = manifest.identity.difference(identity)
        if difference is not None:
            raise SignalError(
                f"{folder} holds a cache that was captured otherwise: {difference}.",
                "Name another folder as `capture.path`, or change the recipe to what the cache holds.",
            )
        TeacherCache.verify_folder(folder)
        cache = TeacherCache.open(folder)
        return cls(folder, cache.manifest, set(cache.digests))

    def missing(self, digests: list[str]) -> list[str]:
        """Those sequences, in order, that the cache does not hold."""
        return [digest for digest in digests if digest not in self._there]

    def add(self, digest: str, logprobs: torch.Tensor) -> None:
        """Encode one sequence's signal; it is written with the next :meth:`flush`.

        Args:
            digest: The sequence's address.
            logprobs: The teacher's log-probabilities, [N, V] float32, nats; they may be overwritten.
        """
        size = self._manifest.identity.vocabulary_size
        if logprobs.shape[1] != size:
            raise SignalError(
                f"The teacher gives {logprobs.shape[1]} ids, and the cache has {size}.", "Use another cache."
            )
        entropy = -float((logprobs.exp() * logprobs.clamp_min(-1e4)).sum(dtype=torch.float64))
        data = self._codec.encode(logprobs, sampling_generator(self._manifest.identity.seed, digest))
        self._waiting.append(Encoded(digest, logprobs.shape[0], entropy, data))

    def flush(self) -> None:
        """Write what is waiting as one shard, then the manifest that names it."""
        if not self._waiting:
            return
        number = 1 + max((int(entry.name[6:12]) for entry in self._manifest.shards), default=-1)
        entry = write_shard(self.folder, number, self._waiting)
        self._manifest = self._manifest.model_copy(update={"shards": (*self._manifest.shards, entry)})
        self._manifest.save(self.folder)
        self._there.update(sequence.digest for sequence in self._waiting)
        self._waiting = []
