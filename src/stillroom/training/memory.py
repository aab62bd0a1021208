"""What training takes of a GPU's memory, by arithmetic, and the layout that fits.

Legend: H hidden size, F feed-forward channels, Q and K widths of all query and all key/value heads, V ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stillroom.core.errors import OutOfMemory
from stillroom.recipe.training import DistillConfig
from stillroom.training.averages import BLOCK
from stillroom.training.batch_size import CHUNK_COPIES
from stillroom.training.lean import STATES

if TYPE_CHECKING:
    from stillroom.models.types import ModelConfig

State = Literal["plain", 16, 12, 10, 8]
USABLE = 0.95
"""Of a GPU's memory: the rest is lost to the allocator's gaps, PyTorch's context and libraries."""


@dataclass(frozen=True)
class Sizes:
    """What activations are computed from.

    Attributes:
        layers: Layers.
        hidden: H.
        inner: F.
        queries: Q.
        keys: K.
        rows: V.
    """

    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    rows: int

    @classmethod
    def of(cls, config: ModelConfig) -> Sizes:
        """The sizes of a model."""
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads * width,
            config.num_key_value_heads * width,
            config.vocab_size,
        )

    def layer_bytes(self, tokens: int, number: int = 2) -> int:
        """What one layer keeps for its backward pass, in a format of ``number`` bytes."""
        # Two norms keep their input in float32, its normed form and their output; attention its queries, keys, values before
        # and after rotation, and its output; the gated feed-forward part both halves, the activation, and the product.
        norms = 2 * self.hidden * (4 + 4 + 2 * number)
        attention = number * (4 * self.queries + 5 * self.keys)
        return tokens * (norms + attention + number * (4 * self.inner + 2 * self.hidden))

    def passing_bytes(
        self,
        tokens: int,
        chunk: int,
        checkpointing: bool,
        number: int = 2,
        *,
        careful: bool = False,
        frozen: bool = False,
    ) -> int:
        """What a forward pass keeps for its backward pass, and the larger of one layer's gradients and the loss.

        ``careful`` adds both, as if freed blocks could not be used again: a layout is chosen by that. Where the output matrix
        is ``frozen`` it has no gradient.
        """
        one = self.layer_bytes(tokens, number)
        stream = self.layers * tokens * self.hidden * number
        kept, inside = (stream, 2 * one) if checkpointing else (self.layers * one, one)
        loss = self.loss_bytes(tokens, min(chunk, tokens), number, frozen=frozen)
        return kept + (inside + loss if careful else max(inside, loss))

    def loss_bytes(self, tokens: int, chunk: int, number: int = 2, *, frozen: bool = False) -> int:
        """Hidden states with their gradient, a chunk's logits, and the output matrix's gradient in float32."""
        matrix = 0 if frozen else self.rows * self.hidden * (4 + 2 * number)
        return 2 * tokens * self.hidden * number + CHUNK_COPIES * 4 * chunk * self.rows + matrix


def state_bytes(state: State, precise: bool, accumulates: bool) -> float:
    """Bytes per parameter of weights, gradients and averages.

    Args:
        state: The layout; ``plain`` is that of the CPU.
        precise: Whether it computes in float32, without a copy.
        accumulates: Whether a step has several micro-batches.
    """
    if state == "plain":
        return 16 if precise else 20
    scales = 2 * 4 / BLOCK if state == 10 else 0
    return state + scales + (2 if accumulates else 0)


def frozen_bytes(frozen: int, precise: bool) -> int:
    """Bytes of weights that are not trained: they are kept in the format of the passes, and have no gradients."""
    return frozen * (4 if precise else 2)


def step_bytes(state: State, sizes: Sizes, accumulates: bool) -> int:
    """What an optimizer step holds besides what is stored: the float32 numbers of the largest parameter.

    Args:
        state: The layout.
        sizes: The student's.
        accumulates: Whether its gradient is float32 already.
    """
    if state == "plain":
        return 0
    scaled, averages, weight = 4 + (0 if accumulates else 4), 8 if state < 16 else 0, 4 if state == 8 else 0
    return max(sizes.rows, sizes.inner) * sizes.hidden * (scaled + averages + weight)


def choose_layout(
    config: DistillConfig,
    sizes: Sizes,
    parameters: int,
    tokens: int,
    chunk: int,
    limit: int | None,
    *,
    precise: bool,
    accumulates: bool,
    frozen: int = 0,
) -> tuple[State, bool]:
    """How weights and averages are stored, and whether activations are computed twice (gradient checkpointing).

    Args:
        config: The recipe's section.
        sizes: The student's.
        parameters: The student's that are trained.
        tokens: Of a forward pass.
        chunk: Positions whose logits exist at the same time.
        limit: Bytes of the device; None on the CPU, where ``auto`` is ``plain`` without checkpointing.
        precise: Whether it computes in float32.
        accumulates: Whether a step has several micro-batches.
        frozen: The student's parameters that are not trained; those that are, are then stored in the layout ``plain``.

    Raises:
        OutOfMemory: Nothing that the recipe allows fits.
    """
    asked, again = config.state, config.gradient_checkpointing
    states: list[State] = ["plain", *STATES] if asked == "auto" else [asked]
    if asked == "auto" and (limit is None or precise or frozen):
        states = ["plain"]
    choices = [False, True] if again == "auto" else [again == "on"]
    if limit is None:
        return states[0], choices[0]
    least = 0.0
    for state in states:
        for checkpointing in choices:
            number = 4 if precise else 2
            passing = sizes.passing_bytes(tokens, chunk, checkpointing, number, careful=True, frozen=bool(frozen))
            need = frozen_bytes(frozen, precise) + parameters * state_bytes(state, precise, accumulates)
            need += max(passing, step_bytes(state, sizes, accumulates))
            if need <= USABLE * limit:
                return state, checkpointing
            least = min(least, need) if least else need
    what = f"adapters of {frozen / 1e9:.2f}" if frozen else f"{parameters / 1e9:.2f}"
    raise OutOfMemory(
        f"Training {what} billion parameters with {tokens:,} tokens per forward pass takes "
        f"{least / 1e9:.0f} GB of the GPU's memory, and there are {limit / 1e9:.0f}.",
        "Lower `distill.micro_batch_tokens`, let `distill.state` and `distill.gradient_checkpointing` be auto, or make the "
        "student smaller.",
    )
