"""What a student of some shape takes: parameters, file, memory, speed.

Parameters are counted from the teacher's own tensors and the family's table of axes, so that biases, tied embeddings
and fused matrices are counted as they are. File sizes follow the block sizes of GGUF types.

Legend: rows × columns of a matrix.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError

from stillroom.core.errors import RecipeError
from stillroom.models.families.family import Family, head_width

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig, Tokenizer

BLOCKS = {"F16": (1, 2), "Q8_0": (32, 34), "Q6_K": (256, 210), "Q5_K": (256, 176), "Q4_K": (256, 144), "Q4_0": (32, 18)}
"""Weights and bytes of a block."""
MIXES = {"Q5_K_M": ("Q5_K", "Q6_K"), "Q4_K_M": ("Q4_K", "Q6_K"), "Q4_0": ("Q4_0", "Q6_K")}
"""Type of most matrices, and of those that the mix keeps finer (half of the value and down matrices, and the
output)."""
WITHOUT_256 = {"Q6_K": "Q8_0", "Q5_K": "Q8_0", "Q4_K": "Q8_0"}
"""What stands in for a type of 256 weights a block where a row is not a multiple of that: an upper bound."""
HEADER_BYTES = 1 << 16
"""Metadata of a GGUF file but its tokenizer."""
BATCH = 512
"""Positions that the runtime computes at once."""


@dataclass(frozen=True, order=True)
class Shape:
    """The size of a student.

    Attributes:
        layers: Layers.
        channels: Feed-forward channels of a layer.
        groups: Key/value heads of a layer.
        hidden: Hidden width.
        vocabulary: Rows of the embedding.
    """

    layers: int
    channels: int
    groups: int
    hidden: int
    vocabulary: int

    def words(self) -> str:
        """The shape in a few words."""
        return (
            f"{self.layers} layers, {self.channels} channels, {self.groups} key/value heads, width {self.hidden}, "
            f"{self.vocabulary:,} ids"
        )


@dataclass(frozen=True)
class _Term:
    """One tensor: what its rows and columns count; None for columns of a vector."""

    rows: str
    columns: str | None
    per_layer: bool
    fine: bool = False


@dataclass(frozen=True)
class Anatomy:
    """Which tensors a model of a family has.

    Attributes:
        teacher: The teacher's own shape.
        share: Query heads of a key/value head.
        head: Width of a head.
        tied: Whether the output matrix is the embedding.
        tokenizer_bytes_per_id: Bytes of a GGUF's metadata for one id and its merge.
        divided: Whether transformers' configuration takes only hidden widths that its query heads divide (Llama, Gemma).
    """

    teacher: Shape
    share: int
    head: int
    tied: bool
    tokenizer_bytes_per_id: float
    terms: tuple[_Term, ...]
    divided: bool = False

    @classmethod
    def of(cls, model: CausalModel, family: Family, tokenizer_bytes_per_id: float = 32.0) -> Anatomy:
        """Read a teacher."""
        config = model.config
        tied = bool(config.tie_word_embeddings)
        terms = [_Term("vocabulary", "hidden", False, fine=tied), _Term("hidden", None, False)]
        if not tied:
            terms.append(_Term("vocabulary", "hidden", False, fine=True))
        for name, parameter in family.layers(model)[0].named_parameters():
            module, _, kind = name.rpartition(".")
            rows, columns = family.axes[module]
            fine = module.endswith(("v_proj", "down_proj", "qkv_proj"))
            terms.append(_Term(rows, columns if kind == "weight" and parameter.dim() == 2 else None, True, fine))
        shape = Shape(
            config.num_hidden_layers,
            config.intermediate_size,
            config.num_key_value_heads,
            config.hidden_size,
            model.get_output_embeddings().weight.shape[0],
        )
        share = config.num_attention_heads // config.num_key_value_heads
        return cls(shape, share, head_width(config), tied, tokenizer_bytes_per_id, tuple(terms), _divided(config))

    def require_possible(self, shape: Shape) -> None:
        """Refuse a shape that transformers would not load.

        Raises:
            RecipeError: Says which hidden widths there are beside it.
        """
        heads = shape.groups * self.share
        if self.possible(shape):
            return
        below = shape.hidden // heads * heads
        nearest = [width for width in (below, below + heads) if 0 < width <= self.teacher.hidden]
        raise RecipeError(
            f"`student.hidden_width` is {shape.hidden}; with {heads} query heads, this family's configuration takes "
            f"multiples of {heads} only.",
            f"Nearest: {' or '.join(map(str, nearest))}.",
        )

    def possible(self, shape: Shape) -> bool:
        """Whether transformers loads a model of this shape; more than the teacher has is refused elsewhere."""
        more = shape.hidden > self.teacher.hidden or shape.groups > self.teacher.groups
        return more or not self.divided or shape.hidden % (shape.groups * self.share) == 0

    def parameters(self, shape: Shape) -> int:
        """Parameters, exactly; tied ones once."""
        return sum(rows * columns * count for rows, columns, count, _, _ in self._tensors(shape))

    def weight_bytes(self, shape: Shape, quantisation: str) -> int:
        """Bytes of the tensors of a GGUF file (an upper bound where a mix chooses by layer)."""
        main, finer = MIXES.get(quantisation, (quantisation, quantisation))
        total = 0
        for rows, columns, count, vector, fine in self._tensors(shape):
            if vector:
                size = 4 * rows
            else:
                kind = finer if fine else main
                size = rows * _row_bytes(columns, kind)
            total += count * (size + 31) // 32 * 32
        return total

    def file_bytes(self, shape: Shape, quantisation: str) -> int:
        """Bytes of a GGUF file, tokenizer included."""
        names = 100 * len(self.terms) * shape.layers
        words = round(self.tokenizer_bytes_per_id * shape.vocabulary)
        return self.weight_bytes(shape, quantisation) + words + names + HEADER_BYTES

    def memory_bytes(self, shape: Shape, quantisation: str, context: int) -> int:
        """Bytes while it answers: the file, keys and values in 16 bits, and the activations of one batch."""
        inner = max(3 * shape.channels, 4 * shape.hidden, 3 * self.share * shape.groups * self.head)
        work = 4 * BATCH * (inner + 4 * shape.hidden) + 4 * shape.vocabulary * 8 + 4 * BATCH * min(context, 4096)
        return self.file_bytes(shape, quantisation) + self.cache_bytes(shape, context) + work

    def cache_bytes(self, shape: Shape, context: int) -> int:
        """Bytes of keys and values at a context length, in 16 bits."""
        return 2 * 2 * shape.layers * shape.groups * self.head * context

    def decode_rate(self, shape: Shape, quantisation: str, context: int, bandwidth: float) -> float:
        """Tokens a second: every weight but the embedding's other rows, and half the cache, are read for each token.

        Args:
            shape: The student.
            quantisation: GGUF type.
            context: Tokens of context, full at the end.
            bandwidth: Bytes a second that decoding reaches.
        """
        read = self.weight_bytes(shape, quantisation) + self.cache_bytes(shape, context) / 2
        if not self.tied:
            embedding = shape.vocabulary * _row_bytes(shape.hidden, MIXES.get(quantisation, (quantisation,))[0])
            read -= embedding
        return bandwidth / read

    def _tensors(self, shape: Shape) -> list[tuple[int, int, int, bool, bool]]:
        """Rows, columns, count, whether it is a vector, whether a mix keeps it finer."""
        queries = self.share * shape.groups * self.head
        keys = shape.groups * self.head
        sizes = {
            "hidden": shape.hidden,
            "norm": shape.hidden,
            "queries": queries,
            "query_norm": queries,
            "keys": keys,
            "key_norm": keys,
            "fused": queries + 2 * keys,
            "channels": shape.channels,
            "gated": 2 * shape.channels,
            "head": self.head,
            "vocabulary": shape.vocabulary,
        }
        return [
            (
                sizes[term.rows],
                sizes[term.columns] if term.columns else 1,
                shape.layers if term.per_layer else 1,
                term.columns is None,
                term.fine,
            )
            for term in self.terms
        ]


def _row_bytes(columns: int, kind: str) -> int:
    """Bytes of a row of a matrix; where blocks do not fit, of the type that stands in."""
    for choice in (kind, WITHOUT_256.get(kind, "F16"), "F16"):
        weights, size = BLOCKS[choice]
        if columns % weights == 0:
            return columns // weights * size
    raise AssertionError(kind)


def tokenizer_bytes(tokenizer: Tokenizer) -> float:
    """Bytes a token of a GGUF's lists of tokens, types and merges take (a merge is its token and a blank)."""
    vocabulary = tokenizer.get_vocab()
    text = sum(len(token.encode()) for token in vocabulary)
    return (2 * text + len(vocabulary) * (8 + 4 + 4 + 9)) / len(vocabulary)


def _divided(config: ModelConfig) -> bool:
    """Whether a configuration with a head too many for its width is refused."""
    probe = copy.deepcopy(config)
    probe.num_attention_heads = config.hidden_size + 1
    try:
        probe.validate()
    except (StrictDataclassError, ValueError):
        return True
    return False
