"""The signals of several teachers behind one face: each piece is read from the cache of the teacher that it is learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from stillroom.core.errors import SignalError
from stillroom.signals.cache.identity import CacheIdentity
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.signal import CoarseSignal, DenseSignal, Signal, SparseSignal


class Signals(Protocol):
    """Where a training reads what its teachers predicted: :class:`stillroom.signals.cache.reader.TeacherCache`, or several."""

    @property
    def identity(self) -> CacheIdentity:
        """What was captured and how."""
        ...

    def require(self, **wanted: object) -> None:
        """Refuse what was captured otherwise."""
        ...

    def read(self, digests: list[str]) -> tuple[Signal, list[int]]:
        """The signals of pieces, one after the other, and the number of positions of each."""
        ...

    def entropy(self, digest: str) -> float:
        """The teacher's entropy summed over a piece's positions, nats."""
        ...


class RoutedSignals:
    """Several caches as one.

    Args:
        caches: One for each route; all with the same codec and temperature.
        route_of: The number of the route of each piece, by its address.
        size: Ids of the vocabulary; a teacher with fewer gives the others no probability.
    """

    def __init__(self, caches: Sequence[TeacherCache], route_of: Mapping[str, int], size: int) -> None:
        assert caches
        self.caches = list(caches)
        self.route_of = route_of
        self.size = size

    @property
    def identity(self) -> CacheIdentity:
        """Of the first; codec and temperature are those of all."""
        return self.caches[0].identity.model_copy(update={"vocabulary_size": self.size})

    def require(self, **wanted: object) -> None:
        """Refuse what was captured otherwise; errors as in :meth:`TeacherCache.require`."""
        for cache in self.caches:
            cache.require(**wanted)

    def _cache(self, digest: str) -> TeacherCache:
        return self.caches[self._route(digest)]

    def _route(self, digest: str) -> int:
        try:
            return self.route_of[digest]
        except KeyError:
            raise SignalError(
                f"No teacher is known for the sequence {digest[:12]}….", "Capture this corpus first."
            ) from None

    def entropy(self, digest: str) -> float:
        """See :meth:`TeacherCache.entropy`."""
        return self._cache(digest).entropy(digest)

    def read(self, digests: list[str]) -> tuple[Signal, list[int]]:
        """See :meth:`TeacherCache.read`."""
        routes = [self._route(digest) for digest in digests]
        chosen = sorted(set(routes))
        if len(chosen) == 1:
            signal, counts = self.caches[chosen[0]].read(digests)
            return self._widened(signal), counts
        counts = [0] * len(digests)
        signals: list[Signal] = []
        begins: dict[int, int] = {}
        end = 0
        for route in chosen:
            mine = [number for number, other in enumerate(routes) if other == route]
            signal, found = self.caches[route].read([digests[number] for number in mine])
            signals.append(self._widened(signal))
            for number, count in zip(mine, found, strict=True):
                counts[number], begins[number] = count, end
                end += count
        order = torch.cat([torch.arange(begins[n], begins[n] + counts[n]) for n in range(len(digests))])
        return joined(signals).each(lambda tensor: tensor[order]), counts

    def _widened(self, signal: Signal) -> Signal:
        """Ids that a teacher with fewer rows does not have are impossible; lists of ids need no more."""
        if not isinstance(signal, DenseSignal) or signal.logprobs.shape[1] == self.size:
            return signal
        whole = torch.full((len(signal), self.size), float("-inf"))
        whole[:, : signal.logprobs.shape[1]] = signal.logprobs
        return DenseSignal(whole)


def joined(signals: Sequence[Signal]) -> Signal:
    """Signals of one kind, one behind the other; shorter lists are filled up.

    Raises:
        SignalError: They are of several kinds.
    """
    first = signals[0]
    if isinstance(first, DenseSignal):
        dense = [signal for signal in signals if isinstance(signal, DenseSignal)]
        if len(dense) == len(signals):
            return DenseSignal(torch.cat([signal.logprobs for signal in dense]))
    elif isinstance(first, SparseSignal):
        sparse = [signal for signal in signals if isinstance(signal, SparseSignal)]
        if len({(signal.unbiased, signal.rest is None) for signal in sparse}) == 1 and len(sparse) == len(signals):
            width = max(signal.ids.shape[1] for signal in sparse)
            rests = [signal.rest for signal in sparse if signal.rest is not None]
            return SparseSignal(
                torch.cat([_filled(signal.ids, width, 0) for signal in sparse]),
                torch.cat([_filled(signal.weights, width, 0.0) for signal in sparse]),
                first.unbiased,
                torch.cat(rests) if rests else None,
            )
    else:
        coarse = [signal for signal in signals if isinstance(signal, CoarseSignal)]
        if len(coarse) == len(signals):
            width = max(signal.ids.shape[1] for signal in coarse)
            return CoarseSignal(
                torch.cat([_filled(signal.ids, width, 0) for signal in coarse]),
                torch.cat([_filled(signal.logprobs, width, float("-inf")) for signal in coarse]),
                torch.cat([signal.rest for signal in coarse]),
            )
    raise SignalError("The teachers' signals are of different kinds.", "Capture all of them with one `capture.codec`.")


def _filled(values: torch.Tensor, width: int, filler: float) -> torch.Tensor:
    """Lists [N, K] with so many entries, [N, width]."""
    if values.shape[1] == width:
        return values
    whole = torch.full((values.shape[0], width), filler, dtype=values.dtype)
    whole[:, : values.shape[1]] = values
    return whole
