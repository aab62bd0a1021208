"""Causal attention inside documents of packed sequences, in blocks of queries, for CPUs.

PyTorch's fused attention on a CPU reaches a third of the rate of its matrix products, and visits every key whether
or not a document allows it. Here a block of queries meets only the keys from the beginning of its oldest document to its
own end, in plain matrix products; the probabilities are kept for the backward pass, half a matrix a head.

Legend: B sequences, L tokens, G groups of keys and values, R query heads a group, D width of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

APART = "stillroom_apart"
"""The attribute of a model whose layers are compiled, and whose attention is not."""
NAME = "stillroom_packed"
BLOCK = 64
"""Queries that are answered together."""
SHORTEST, LONGEST = 2 * BLOCK, 4096
"""Tokens per sequence for which this pays: below, calls cost more; above, the probabilities take too much memory."""


@dataclass(frozen=True)
class Block:
    """Queries ``begin`` to ``end`` and the keys from ``first`` on; ``mask`` is added to the scores of the last keys."""

    begin: int
    end: int
    first: int
    mask: torch.Tensor
    """[B, 1, 1, queries, keys of the mask]: 0 or -inf."""


def blocks_of(positions: torch.Tensor, dtype: torch.dtype) -> list[Block]:
    """Blocks of queries for packed sequences.

    Args:
        positions: Position of each token inside its document, [B, L]; 0 begins a document.
        dtype: Of the scores.
    """
    length = positions.shape[1]
    index = torch.arange(length)
    starts = index - positions
    found = []
    for begin in range(0, length, BLOCK):
        end = min(begin + BLOCK, length)
        # Few different numbers of keys: for every shape that is new to it, oneDNN makes code first, which takes as long as
        # the product.
        first = int(starts[:, begin].min()) // BLOCK * BLOCK
        keys = index[first:end]
        allowed = (keys <= index[begin:end, None]) & (keys >= starts[:, begin:end, None])
        # Keys up to the first one that somebody may not see need no mask.
        whole = int(allowed.all(dim=0).all(dim=0).to(torch.uint8).cumprod(0).sum())
        mask = torch.zeros(allowed[..., whole:].shape, dtype=dtype).masked_fill_(~allowed[..., whole:], float("-inf"))
        found.append(Block(begin, end, first, mask[:, None, None]))
    return found


class _PackedAttention(torch.autograd.Function):
    """softmax(scale · q kᵀ + mask) v, block by block."""

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: list[Block], scale: float
    ) -> torch.Tensor:
        """Output [B, L, G·R, D] of query [B, G·R, L, D], key and value [B, G, L, D]."""
        batch, heads, length, width = query.shape
        groups = key.shape[1]
        repeats = heads // groups
        queries = (query * scale).reshape(batch * groups, repeats, length, width)
        keys = key.reshape(batch * groups, length, width)
        values = value.reshape(batch * groups, length, width)
        output = query.new_empty(batch, length, groups, repeats, width)
        kept = []
        for block in blocks:
            asked = queries[:, :, block.begin : block.end].reshape(batch * groups, -1, width)
            scores = torch.bmm(asked, keys[:, block.first : block.end].transpose(1, 2))
            shaped = scores.view(batch, groups, repeats, block.end - block.begin, -1)
            shaped[..., shaped.shape[-1] - block.mask.shape[-1] :] += block.mask
            probabilities = torch.softmax(scores, dim=-1)
            kept.append(probabilities)
            answer = torch.bmm(probabilities, values[:, block.first : block.end])
            output[:, block.begin : block.end] = answer.view(batch, groups, repeats, -1, width).permute(0, 3, 1, 2, 4)
        ctx.save_for_backward(queries, keys, values, output, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return output.view(batch, length, heads, width)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """With P the probabilities: dV = Pᵀ dO, dS = P (dO Vᵀ − Σ dO O), dQ = dS K, dK = dSᵀ Q."""
        queries, keys, values, output, *kept = ctx.saved_tensors
        batch, length, groups, repeats, width = output.shape
        grad = grad.view(output.shape)
        # The products are made in the format of the tensors, sums over blocks in float32.
        through = (grad.float() * output.float()).sum(-1).permute(0, 2, 3, 1).reshape(batch * groups, repeats, length)
        grads = grad.permute(0, 2, 3, 1, 4).reshape(batch * groups, repeats, length, width)
        grad_query = torch.empty_like(queries)
        grad_key = torch.zeros(keys.shape, dtype=torch.float32)
        grad_value = torch.zeros(values.shape, dtype=torch.float32)
        for block, probabilities in zip(ctx.blocks, kept, strict=True):
            rows, columns = slice(block.begin, block.end), slice(block.first, block.end)
            given = grads[:, :, rows].reshape(batch * groups, -1, width)
            asked = queries[:, :, rows].reshape(batch * groups, -1, width)
            grad_value[:, columns] += torch.bmm(probabilities.transpose(1, 2), given)
            scores = torch.bmm(given, values[:, columns].transpose(1, 2))
            scores.sub_(through[:, :, rows].reshape(batch * groups, -1, 1).to(scores.dtype)).mul_(probabilities)
            grad_query[:, :, rows] = torch.bmm(scores, keys[:, columns]).view(batch * groups, repeats, -1, width)
            grad_key[:, columns] += torch.bmm(scores.transpose(1, 2), asked)
        shape = (batch, groups, length, width)
        return (
            grad_query.mul_(ctx.scale).view(batch, groups * repeats, length, width),
            grad_key.to(keys.dtype).view(shape),
            grad_value.to(values.dtype).view(shape),
            None,
            None,
        )


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, blocks: list[Block], scale: float
) -> torch.Tensor:
    """Causal attention inside documents.

    Args:
        query: [B, G·R, L, D].
        key: [B, G, L, D].
        value: As the key.
        blocks: Of :func:`blocks_of`.
        scale: Factor on the scores.

    Returns:
        [B, L, G·R, D].
    """
    output: torch.Tensor = _PackedAttention.apply(query, key, value, blocks, scale)  # type: ignore[no-untyped-call]
    return output


def applies(model: CausalModel, ids: torch.Tensor) -> bool:
    """Whether a model's attention is the plain one that this replaces, on a device and of a length where it pays."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        ids.device.type == "cpu"
        and SHORTEST <= ids.shape[1] <= LONGEST
        and getattr(config, "_attn_implementation", None) == "sdpa"
        and kinds == {"full_attention"}
        and (window is None or window >= ids.shape[1] or not getattr(config, "use_sliding_window", True))
        and getattr(config, "attn_logit_softcapping", None) is None
        and not getattr(config, "attention_dropout", 0.0)
        and getattr(config, "is_causal", True)
    )


@contextlib.contextmanager
def attention_named(model: CausalModel, name: str, interface: Callable[..., Any]) -> Iterator[None]:
    """While the body runs, the model's layers call an attention function, by the name that transformers knows it under."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if getattr(model, APART, False):
        name = f"{name}_apart"
        if name not in ALL_ATTENTION_FUNCTIONS:
            # Compiled with the layer, it would be compiled again for each batch's documents.
            ALL_ATTENTION_FUNCTIONS.register(name, torch.compiler.disable(interface))  # type: ignore[no-untyped-call]
    elif name not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(name, interface)
    config = model.config
    before = config._attn_implementation_internal
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def packed(model: CausalModel) -> contextlib.AbstractContextManager[None]:
    """While the body runs, the model's layers call :func:`packed_attention`; they need the argument ``blocks``."""
    return attention_named(model, NAME, _interface)


def _interface(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    blocks: list[Block],
    scaling: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    # A layer that asks for more than plain attention must not get less. models/proof.py meets this before the model is used.
    asked = [name for name in ("s_aux", "softcap", "position_bias", "head_mask") if more.get(name) is not None]
    if (
        attention_mask is not None
        or asked
        or sliding_window not in (None, getattr(module.config, "sliding_window", None))
    ):
        raise NotImplementedError(f"not plain attention: {asked or 'a mask or window of its own'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Rotary embeddings may have raised queries and keys to another format than values have; under autocast each product of
    # each block would be given its own rounded copies.
    rounds = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if rounds else query.dtype
    with torch.autocast("cpu", enabled=False) if rounds else contextlib.nullcontext():
        return packed_attention(query.to(dtype), key.to(dtype), value.to(dtype), blocks, scale), None
