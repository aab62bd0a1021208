"""Codecs by the kind that a recipe or a manifest names."""

from __future__ import annotations

from typing import Any

from stillroom.core.errors import SignalError
from stillroom.recipe.capture import Codec as CodecConfig
from stillroom.recipe.capture import DenseCodec, HiddenCodec, ObservedCodec, TopKCodec
from stillroom.signals.cache.codec import SignalCodec
from stillroom.signals.signal import SignalKind

VERSIONS = {"threshold": 1, "top_k": 1, "dense": 1, "observed": 1, "hidden": 1}
"""The version that each codec writes now. A change of its records, or of what it keeps, raises it; older ones are read."""


def make_codec(config: CodecConfig, vocabulary_size: int, version: int | None = None) -> SignalCodec[Any]:
    """The codec that a recipe or a manifest describes.

    Args:
        config: The recipe's or the manifest's words.
        vocabulary_size: Ids of the teacher.
        version: The codec's version of a manifest; None is the one that is written now.

    Raises:
        SignalError: The version is one that this program does not know.
    """
    if version is not None and version > VERSIONS[config.kind]:
        raise SignalError(
            f"The codec `{config.kind}` has version {version} here, and this program reads up to {VERSIONS[config.kind]}.",
            "Use the version of Stillroom that wrote the cache, or capture again.",
        )
    if isinstance(config, DenseCodec):
        from stillroom.signals.cache.dense import Dense

        return Dense(vocabulary_size)
    if isinstance(config, TopKCodec):
        from stillroom.signals.cache.top_k import TopK

        return TopK(config.k, vocabulary_size)
    if isinstance(config, ObservedCodec):
        from stillroom.signals.cache.observed import Observed

        return Observed(config.k, vocabulary_size)
    if isinstance(config, HiddenCodec):
        from stillroom.signals.cache.hidden import Hidden

        return Hidden(config.bits, vocabulary_size)
    from stillroom.signals.cache.threshold import Threshold

    return Threshold(config.tau, vocabulary_size, config.draws, config.head)


def signal_kind(config: CodecConfig) -> SignalKind:
    """What the signals of a codec say of the teacher's distribution."""
    return make_codec(config, 1).kind
