"""Codecs by the kind that a recipe or a manifest names."""

from __future__ import annotations

from typing import Any

from stillroom.recipe.capture import Codec as CodecConfig
from stillroom.recipe.capture import DenseCodec, TopKCodec
from stillroom.signals.cache.codec import SignalCodec
from stillroom.signals.signal import SignalKind


def make_codec(config: CodecConfig, vocabulary_size: int) -> SignalCodec[Any]:
    """The codec that a recipe or a manifest describes."""
    if isinstance(config, DenseCodec):
        from stillroom.signals.cache.dense import Dense

        return Dense(vocabulary_size)
    if isinstance(config, TopKCodec):
        from stillroom.signals.cache.top_k import TopK

        return TopK(config.k, vocabulary_size)
    from stillroom.signals.cache.threshold import Threshold

    return Threshold(config.tau, vocabulary_size, config.draws, config.head)


def signal_kind(config: CodecConfig) -> SignalKind:
    """What the signals of a codec say of the teacher's distribution."""
    return make_codec(config, 1).kind
