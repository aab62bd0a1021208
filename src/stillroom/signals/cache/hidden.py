"""The hidden codec: the teacher's last hidden states, and its output layer once a cache: the whole distribution.

Legend: N positions, H hidden size, V ids of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
import zstandard

from stillroom.core.errors import CacheDamaged, SignalError
from stillroom.models.passes import Head
from stillroom.signals.cache.codec import SignalCodec
from stillroom.signals.cache.columns import LEVEL, ColumnReader, pack_columns
from stillroom.signals.signal import DenseSignal, SignalKind

POSITIONS = 64
"""Positions that go through the output layer together, as when a teacher is captured."""
LARGEST = 127
"""Of an int8 channel."""


@dataclass(frozen=True)
class OutputLayer:
    """A teacher's output layer, and the temperature that its logits are divided by."""

    head: Head
    temperature: float = 1.0

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        """Logits divided by the temperature, [n, V] float32, some positions at a time, of hidden states [N, H]."""
        head = self.head
        for part in torch.split(hidden.to(head.matrix.dtype), POSITIONS):
            products = torch.nn.functional.linear(part, head.matrix, head.bias).float()
            logits = head.finish(products)
            yield logits if self.temperature == 1.0 else logits / self.temperature

    def dump(self) -> bytes:
        """As safetensors inside one Zstandard frame: ``matrix``, ``bias`` if there is one, and ``numbers``.

        The numbers are scale, cap (0: none) and temperature, float64.
        """
        from safetensors.torch import save

        head = self.head
        numbers = torch.tensor([head.scale, head.softcap or 0.0, self.temperature], dtype=torch.float64)
        tensors = {"matrix": head.matrix.detach().cpu().contiguous().clone(), "numbers": numbers}
        if head.bias is not None:
            tensors["bias"] = head.bias.detach().cpu().contiguous().clone()
        return zstandard.ZstdCompressor(level=LEVEL).compress(save(tensors))

    @classmethod
    def load(cls, data: bytes, vocabulary_size: int) -> OutputLayer:
        """What :meth:`dump` wrote.

        Raises:
            CacheDamaged: It is something else.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(zstandard.ZstdDecompressor().decompressobj().decompress(data))
            scale, cap, temperature = tensors["numbers"].tolist()
            matrix = tensors["matrix"]
            if matrix.shape[0] != vocabulary_size or not temperature > 0:
                raise ValueError(f"{matrix.shape[0]} ids, temperature {temperature:g}")
            return cls(Head(matrix, tensors.get("bias"), scale, cap or None), temperature)
        except (zstandard.ZstdError, SafetensorError, KeyError, ValueError, IndexError) as error:
            raise CacheDamaged(f"The output layer of the cache is damaged: {error}.", "Capture again.") from None


class Hidden(SignalCodec[torch.Tensor]):
    """A column of hidden states, channel by channel; their bytes' planes apart, as in every column.

    With 16 bits a number is a bfloat16. With 8 it is an int8 (stored plus 128), and before it is a column with the scale of
    each channel in this piece, float32 [H].
    """

    kind = SignalKind.DENSE

    def __init__(self, bits: int, vocabulary_size: int) -> None:
        self.bits = bits
        self.vocabulary_size = vocabulary_size
        self.layer: OutputLayer | None = None

    def sample(self, probabilities: Iterable[torch.Tensor], random: np.random.Generator) -> NoReturn:  # noqa: ARG002
        """A teacher that gives nothing but distributions has no hidden states to keep."""
        raise SignalError(
            "The codec `hidden` stores hidden states, and this teacher gives distributions.",
            "Capture with `codec: {kind: threshold}`.",
        )

    def keep(self, hidden: torch.Tensor) -> torch.Tensor:
        """What is kept of hidden states [N, H]: bfloat16, or float32 where int8 is made of them when they are packed."""
        return hidden.to(torch.bfloat16 if self.bits == 16 else torch.float32).cpu().clone()

    def learn(self, samples: list[torch.Tensor]) -> bytes:  # noqa: ARG002
        """The output layer, which was given before the first piece. See :meth:`SignalCodec.learn`."""
        return self._layer().dump()

    def recall(self, data: bytes) -> None:
        """See :meth:`SignalCodec.recall`."""
        self.layer = OutputLayer.load(data, self.vocabulary_size)

    def pack(self, sample: torch.Tensor) -> bytes:
        """See :meth:`SignalCodec.pack`."""
        channels = sample.T.contiguous()
        if self.bits == 16:
            raw = channels.view(torch.int16).numpy().reshape(-1).view(np.uint16)
            return pack_columns([(raw, 2)])
        scale = channels.abs().amax(dim=1) / LARGEST if len(sample) else torch.zeros(len(channels))
        whole = torch.where(scale[:, None] > 0, channels / scale[:, None], 0.0).round().clamp(-LARGEST, LARGEST)
        stored = (whole + 128).to(torch.uint8).numpy().reshape(-1)
        return pack_columns([(scale.numpy().view(np.uint32), 4), (stored, 1)])

    def unpack(self, record: bytes, count: int) -> torch.Tensor:
        """The hidden states of a record, [N, H], bfloat16 or float32."""
        width = self._layer().head.matrix.shape[1]
        reader = ColumnReader(record)
        if self.bits == 16:
            raw = reader.column(count * width, 2).astype(np.uint16).view(np.int16)
            return torch.from_numpy(raw).view(torch.bfloat16).reshape(width, count).T.contiguous()
        scale = torch.from_numpy(reader.column(width, 4).astype(np.uint32).view(np.float32))
        whole = torch.from_numpy(reader.column(count * width, 1).astype(np.float32)).reshape(width, count) - 128
        return (whole * scale[:, None]).T.contiguous()

    def decode(self, records: list[bytes], counts: list[int]) -> DenseSignal:
        """See :meth:`SignalCodec.decode`."""
        layer = self._layer()
        parts = [torch.zeros(0, self.vocabulary_size)]
        for record, count in zip(records, counts, strict=True):
            parts += [torch.log_softmax(part, dim=1) for part in layer.logits(self.unpack(record, count))]
        return DenseSignal(torch.cat(parts))

    def _layer(self) -> OutputLayer:
        if self.layer is None:
            raise CacheDamaged("The cache has hidden states and no output layer.", "Capture again.")
        return self.layer
