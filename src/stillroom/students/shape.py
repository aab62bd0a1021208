"""What a student of some shape takes: parameters, file, memory, speed.

Parameters are counted from the teacher's own tensors and the family's table of axes, so that biases, tied embeddings
and fused matrices are counted as they are. Each tensor of a file is counted in the type that the exporter gives it.

Legend: rows × columns of a matrix.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError

from stillroom.core.errors import RecipeError, UnsupportedModel
from stillroom.models.families.family import AXES, Family, cut_config, head_width
from stillroom.models.quantization import Setting, tensor_bytes, tensor_type

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig, Tokenizer

HEADER_BYTES = 1 << 13
"""At most: keys of a GGUF file but its tokenizer's, with the model's name, its licence and the factors of its rotary
positions."""
ALIGNMENT = 32
"""Every tensor of a GGUF file begins at a multiple of so many bytes."""
BATCH = 512
"""Positions that the runtime computes at once."""
KEYS = {
    "layers": "layers",
    "channels": "intermediate_size",
    "groups": "kv_heads",
    "hidden": "hidden_size",
    "experts": "experts",
}
"""A recipe's keys of the axes of a shape."""


@dataclass(frozen=True, order=True)
class Shape:
    """The size of a student.

    Attributes:
        layers: Layers.
        channels: Feed-forward channels of a layer.
        groups: Key/value heads of a layer.
        hidden: Hidden width.
        vocabulary: Rows of the embedding.
        experts: Experts of a layer; 0 for a dense model, or one whose experts all stay.
    """

    layers: int
    channels: int
    groups: int
    hidden: int
    vocabulary: int
    experts: int = 0

    def words(self) -> str:
        """The shape in a few words."""
        channels = f"{self.channels} channels, " if self.channels else ""
        experts = f"{self.experts} experts, " if self.experts else ""
        return (
            f"{self.layers} layers, {channels}{experts}{self.groups} key/value heads, width {self.hidden}, "
            f"{self.vocabulary:,} ids"
        )


def shaped_config(config: ModelConfig, family: Family, shape: Shape) -> ModelConfig:
    """The teacher's config in a smaller shape; of its layers the first, for which ones stay is measured."""
    changed = copy.deepcopy(config)
    cut_config(changed, list(range(shape.layers)))
    changed.vocab_size = shape.vocabulary
    if family.uniform:
        width = head_width(config)
        changed.num_attention_heads = config.num_attention_heads // family.groups(config) * shape.groups
        changed.num_key_value_heads = shape.groups
        changed.head_dim = width
        changed.hidden_size = shape.hidden
    if shape.channels:
        setattr(changed, family.channels_key, shape.channels)
    if shape.experts:
        setattr(changed, family.experts_key, shape.experts)
    return changed


@dataclass(frozen=True)
class _Term:
    """One tensor: its name in a GGUF file, in a layer without ``blk.N.``; what its rows and columns count, None for columns
    of a vector.
    """

    name: str
    rows: str
    columns: str | None
    per_layer: bool


@dataclass(frozen=True)
class Anatomy:
    """Which tensors a model of a family has.

    Attributes:
        teacher: The teacher's own shape.
        share: Query heads of a key/value head.
        head: Width of a head.
        tied: Whether the output matrix is the embedding.
        tokenizer_bytes_per_id: Bytes of a GGUF's metadata for one id, its merge and its share of the chat template.
        terms: The tensors.
        divided: Whether transformers' configuration takes only hidden widths that its query heads divide (Llama, Gemma).
        square: Whether the student has to be as wide as its query heads together: llama.cpp takes it for granted of some
            families, and the student will be exported.
        family: The teacher's family; None for one like Llama.
        config: The teacher's config.
    """

    teacher: Shape
    share: int
    head: int
    tied: bool
    tokenizer_bytes_per_id: float
    terms: tuple[_Term, ...]
    divided: bool = False
    square: bool = False
    family: Family | None = None
    config: ModelConfig | None = None

    @classmethod
    def of(
        cls, model: CausalModel, family: Family, tokenizer_bytes_per_id: float = 32.0, exported: bool = False
    ) -> Anatomy:
        """Read a teacher. ``exported`` says whether the student will be exported to GGUF."""
        config = model.config
        ids = model.get_output_embeddings().weight.shape[0]
        groups = family.groups(config)
        square = exported and family.gguf is not None and family.gguf.square
        if not family.uniform:
            whole = Shape(
                config.num_hidden_layers,
                family.channels(config),
                groups,
                config.hidden_size,
                ids,
                family.experts(config),
            )
            tied = bool(config.tie_word_embeddings)
            return cls(whole, 1, 0, tied, tokenizer_bytes_per_id, (), False, False, family, config)
        tied = bool(config.tie_word_embeddings)
        terms = [
            _Term("token_embd.weight", "vocabulary", "hidden", False),
            _Term("output_norm.weight", "hidden", None, False),
        ]
        if not tied:
            terms.append(_Term("output.weight", "vocabulary", "hidden", False))
        named = _gguf_parts(family)
        for name, parameter in family.layers(model)[0].named_parameters():
            module, _, kind = name.rpartition(".")
            rows, columns = family.axes[module]
            matrix = kind == "weight" and parameter.dim() == 2
            terms.append(_Term(f"{named(module)}.{kind}", rows, columns if matrix else None, True))
        shape = Shape(
            config.num_hidden_layers,
            config.intermediate_size,
            config.num_key_value_heads,
            config.hidden_size,
            ids,
        )
        share = config.num_attention_heads // config.num_key_value_heads
        return cls(
            shape,
            share,
            head_width(config),
            tied,
            tokenizer_bytes_per_id,
            tuple(terms),
            _divided(config),
            square,
            family,
            config,
        )

    def require_counted(self) -> None:
        """Refuse a target for a family whose sizes do not follow from one layer.

        Raises:
            RecipeError: Says what to give instead.
        """
        if not self.terms:
            assert self.family is not None
            raise RecipeError(
                f"`student.target` is not possible for the family `{self.family.name}`: its layers are not all alike.",
                f"Give sizes instead: {', '.join(self._keys())}.",
            )

    def _keys(self) -> list[str]:
        assert self.family is not None
        return [f"`student.{KEYS[axis]}`" for axis in AXES if axis in self.family.cuts]

    def require_possible(self, shape: Shape) -> None:
        """Refuse a shape that transformers would not load.

        Raises:
            UnsupportedModel: As :meth:`require_no_more`.
            RecipeError: Says which hidden widths there are beside it.
        """
        self.require_no_more({axis: getattr(shape, axis) for axis in AXES})
        self._require_axes(shape)
        heads = shape.groups * self.share
        if self.possible(shape):
            return
        if self.square and shape.hidden != heads * self.head:
            raise RecipeError(
                f"`student.hidden_size` is {shape.hidden}; llama.cpp takes only {heads * self.head} with {heads} query heads "
                "of this family.",
                f"Give `hidden_size: {heads * self.head}`, keep all of both, or export nothing: `export: {{gguf: []}}`.",
            )
        below = shape.hidden // heads * heads
        nearest = [width for width in (below, below + heads) if 0 < width <= self.teacher.hidden]
        raise RecipeError(
            f"`student.hidden_size` is {shape.hidden}; with {heads} query heads, this family's configuration takes "
            f"multiples of {heads} only.",
            f"Nearest: {' or '.join(map(str, nearest))}.",
        )

    def require_no_more(self, sizes: Mapping[str, int]) -> None:
        """Refuse sizes that the teacher does not have.

        Args:
            sizes: Sizes by axis.

        Raises:
            UnsupportedModel: Names the recipe's key, and the most that there is.
        """
        for axis, asked in sizes.items():
            there = getattr(self.teacher, axis)
            if asked <= there:
                continue
            if axis == "experts" and not there:
                raise UnsupportedModel(
                    f"`student.experts` is {asked}, and the teacher is no mixture of experts.", "Leave `experts` out."
                )
            raise UnsupportedModel(
                f"`student.{KEYS[axis]}` is {asked}, and the teacher has {there}.", f"Ask for at most {there}."
            )

    def possible(self, shape: Shape) -> bool:
        """Whether transformers loads a model of this shape; more than the teacher has is refused elsewhere."""
        more = shape.hidden > self.teacher.hidden or shape.groups > self.teacher.groups
        if self.square and not more and shape.hidden != shape.groups * self.share * self.head:
            return False
        return more or not self.divided or shape.hidden % (shape.groups * self.share) == 0

    def _require_axes(self, shape: Shape) -> None:
        """Refuse pruning along an axis that the family does not have, or to experts that its router could not choose from.

        Raises:
            RecipeError: It is.
        """
        if self.family is None:
            return
        for axis in AXES:
            if axis not in self.family.cuts and getattr(shape, axis) < getattr(self.teacher, axis):
                raise RecipeError(
                    f"`student.{KEYS[axis]}` cannot be pruned in the family `{self.family.name}`.",
                    f"Give {' or '.join(self._keys())}.",
                )
        if not shape.experts or shape.experts >= self.teacher.experts:
            return
        config = self.config
        chosen = int(getattr(config, self.family.chosen_key, None) or 1)
        groups = int(getattr(config, "n_group", None) or 1)
        used = int(getattr(config, "topk_group", None) or groups)
        each = shape.experts // groups
        if shape.experts < chosen or shape.experts % groups or each * used < chosen or (groups > 1 and each < 2):
            grouped = f", a multiple of its {groups} groups of experts" if groups > 1 else ""
            raise RecipeError(
                f"`student.experts` is {shape.experts}, and each token goes through {chosen} experts of a layer{grouped}.",
                f"Ask for at least {max(chosen, groups * max(2, -(-chosen // used))) if groups > 1 else chosen}{grouped}.",
            )

    def parameters(self, shape: Shape) -> int:
        """Parameters, exactly; tied ones once."""
        if not self.terms:
            return self._built(shape)
        sizes = self._sizes(shape)
        return sum(
            sizes[term.rows] * (sizes[term.columns] if term.columns else 1) * (shape.layers if term.per_layer else 1)
            for term in self.terms
        )

    def exact(self, shape: Shape) -> bool:
        """Whether :meth:`parameters` is exact: where layers differ, it depends on which of them stay."""
        if self.terms or shape.layers >= self.teacher.layers:
            return True
        return len(set(self._layer_sizes(replace(shape, layers=self.teacher.layers))[1])) == 1

    def _built(self, shape: Shape) -> int:
        """Parameters of a model that is built of the shape, without weights; where layers differ, of the largest ones."""
        others, sizes = self._layer_sizes(replace(shape, layers=self.teacher.layers))
        return others + sum(sorted(sizes, reverse=True)[: shape.layers])

    def _layer_sizes(self, shape: Shape) -> tuple[int, list[int]]:
        """Parameters outside the layers, and of each layer, of a model that is built of the shape without weights."""
        import torch
        from transformers import AutoModelForCausalLM

        assert self.family is not None
        assert self.config is not None
        with torch.device("meta"):
            model: CausalModel = AutoModelForCausalLM.from_config(shaped_config(self.config, self.family, shape))
        model.tie_weights()
        sizes = [sum(parameter.numel() for parameter in layer.parameters()) for layer in self.family.layers(model)]
        return sum(parameter.numel() for parameter in model.parameters()) - sum(sizes), sizes

    def weight_bytes(self, shape: Shape, quantisation: str) -> int:
        """Bytes of the tensors of a GGUF file: those that the exporter writes, with or without an importance matrix,
        whichever are more.
        """
        known = self._weights
        if (shape, quantisation) not in known:
            sizes = self._sizes(shape)
            known[shape, quantisation] = sum(
                self._bytes(term, sizes, shape.layers, quantisation) for term in self.terms
            )
        return known[shape, quantisation]

    @functools.cached_property
    def _weights(self) -> dict[tuple[Shape, str], int]:
        """What :meth:`weight_bytes` counted: a solver asks thrice for each of thousands of shapes."""
        return {}

    def file_bytes(self, shape: Shape, quantisation: str) -> int:
        """Bytes of a GGUF file, tokenizer included: no less than the exporter writes, and more by the unused part of
        :data:`HEADER_BYTES` and what an importance matrix makes smaller.
        """
        tokenizer = math.ceil(self.tokenizer_bytes_per_id * shape.vocabulary)
        once, a_layer = self._index_bytes
        return self.weight_bytes(shape, quantisation) + tokenizer + once + a_layer * shape.layers + HEADER_BYTES

    def memory_bytes(self, shape: Shape, quantisation: str, context: int) -> int:
        """Bytes while it answers: the file, keys and values in 16 bits, and the activations of one batch."""
        inner = max(3 * shape.channels, 4 * shape.hidden, 3 * self.share * shape.groups * self.head)
        work = 4 * BATCH * (inner + 4 * shape.hidden) + 4 * shape.vocabulary * 8 + 4 * BATCH * min(context, 4096)
        return self.file_bytes(shape, quantisation) + self.cache_bytes(shape, context) + work

    def cache_bytes(self, shape: Shape, context: int) -> int:
        """Bytes of keys and values at a context length, in 16 bits."""
        return 2 * 2 * shape.layers * shape.groups * self.head * context

    def decode_rate(self, shape: Shape, quantisation: str, context: int, bandwidth: float) -> float:
        """Tokens per second: every weight but the embedding's other rows, and half the cache, are read for each token.

        Args:
            shape: The student.
            quantisation: GGUF type.
            context: Tokens of context, full at the end.
            bandwidth: Bytes per second that decoding reaches.
        """
        read = self.weight_bytes(shape, quantisation) + self.cache_bytes(shape, context) / 2
        if not self.tied:
            read -= self._bytes(self.terms[0], self._sizes(shape), shape.layers, quantisation)
        return bandwidth / read

    @functools.cached_property
    def _index_bytes(self) -> tuple[int, int]:
        """Bytes in a file's list of tensors: of those outside the layers, and of one layer's (of at most 999)."""
        once = a_layer = 0
        for term in self.terms:
            # The name and its length, the number of axes, their sizes, the type, where it begins.
            entry = 8 + len(term.name) + 4 + 8 * (2 if term.columns else 1) + 4 + 8
            if term.per_layer:
                a_layer += entry + len("blk.999.")
            else:
                once += entry
        return once, a_layer

    def _bytes(self, term: _Term, sizes: dict[str, int], layers: int, quantisation: str) -> int:
        """Bytes of a tensor in a file, of all layers together."""
        columns = sizes[term.columns] if term.columns else None
        return _tensor_bytes(
            term.name, sizes[term.rows], columns, term.per_layer, layers, self.tied, self.share, quantisation
        )

    def _sizes(self, shape: Shape) -> dict[str, int]:
        """What rows and columns count, by the names of the family's axes."""
        queries = self.share * shape.groups * self.head
        keys = shape.groups * self.head
        return {
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


@functools.lru_cache(maxsize=1 << 17)
def _tensor_bytes(
    name: str, rows: int, columns: int | None, per_layer: bool, layers: int, tied: bool, shared: int, quantisation: str
) -> int:
    """Bytes of a tensor in a file, of all layers together; with or without an importance matrix, whichever are more."""
    return max(
        sum(
            -(-rows * size // ALIGNMENT) * ALIGNMENT * count
            for size, count in _row_bytes(
                name, columns, per_layer, Setting(quantisation, layers, tied, shared, weighted)
            )
        )
        for weighted in (False, True)
    )


@functools.lru_cache(maxsize=1 << 17)
def _row_bytes(name: str, columns: int | None, per_layer: bool, setting: Setting) -> tuple[tuple[int, int], ...]:
    """Bytes of a row of a tensor, and in how many layers it has so many."""
    row = (1,) if columns is None else (1, columns)
    names = [f"blk.{layer}.{name}" for layer in range(setting.layers)] if per_layer else [name]
    return tuple(Counter(tensor_bytes(row, tensor_type(setting, each, row)) for each in names).items())


def _gguf_parts(family: Family) -> Callable[[str], str]:
    """Names of a layer's modules in a GGUF file; those of Llama for a family that llama.cpp does not have."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(family.gguf.model_arch if family.gguf else MODEL_ARCH.LLAMA, 1)

    def part(module: str) -> str:
        found: str | None = names.get_name(f"model.layers.0.{module}")
        return found.removeprefix("blk.0.") if found else module

    return part


def tokenizer_bytes(tokenizer: Tokenizer) -> float:
    """Bytes of a GGUF's metadata that a tokenizer takes, per id: lists of tokens, types, and merges or scores, and the chat
    template.
    """
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = tokenizer.get_vocab()
    # A string is stored with its length, in 8 bytes; a type and a score take 4.
    total = sum(8 + len(token.encode()) + 4 for token in vocabulary)
    if model["type"] == "BPE" and not model.get("byte_fallback"):
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        total += sum(8 + len(merge.encode()) for merge in merges)
    else:
        total += 4 * len(vocabulary)
    return (total + len(str(tokenizer.chat_template or "").encode())) / len(vocabulary)


def _divided(config: ModelConfig) -> bool:
    """Whether a configuration with a head too many for its width is refused."""
    probe = copy.deepcopy(config)
    probe.num_attention_heads = config.hidden_size + 1
    try:
        probe.validate()
    except (StrictDataclassError, ValueError):
        return True
    return False
