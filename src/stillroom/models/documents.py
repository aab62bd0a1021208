"""Causal attention inside documents of packed sequences, for GPUs.

transformers finds the documents of packed sequences from their positions, for which the CPU waits for the GPU, and makes
a mask of them that keeps PyTorch from its flash kernel. Here the ends of the documents, which are known where a batch is made,
go to :func:`torch.nn.attention.varlen.varlen_attn`; where that does not run (float32, Apple's GPUs, older cards and versions of
PyTorch), a mask is made on the GPU, without waiting for it.

Legend: B sequences, L tokens, G groups of keys and values, R query heads a group, W width of a head, D documents.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from stillroom.models.attention import attention_named

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

NAME = "stillroom_documents"
KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers, as configs name them, whose attention this is."""
WIDEST_HEAD = 256
"""Of the flash kernel; widths are multiples of 8."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch are, its sequences one after the other.

    Attributes:
        ends: Where documents begin, and where the last one ends, [D + 1] int32.
        longest: Tokens of the longest one.
    """

    ends: torch.Tensor
    longest: int

    def to(self, device: torch.device) -> Documents:
        """The same on a device."""
        pinned = device.type == "cuda" and self.ends.device.type == "cpu" and self.ends.is_pinned()
        return Documents(self.ends.to(device, non_blocking=pinned) if pinned else self.ends.to(device), self.longest)

    def pinned(self) -> Documents:
        """The same in pinned memory. It needs CUDA."""
        return Documents(self.ends.pin_memory(), self.longest)


def documents_of(positions: torch.Tensor) -> Documents:
    """The documents of packed sequences.

    Args:
        positions: Position of each token inside its document, [B, L], on the CPU; a new document begins wherever
            it is not one more than the one before.
    """
    begins = torch.ones_like(positions, dtype=torch.bool)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    where = begins.flatten().nonzero().squeeze(1)
    ends = torch.cat([where, where.new_tensor([positions.numel()])]).to(torch.int32)
    return Documents(ends, int(ends.diff().max()) if len(ends) > 1 else 0)


def applies(model: CausalModel, ids: torch.Tensor) -> bool:
    """Whether a model's attention is the plain one, causal or in a window, that this replaces, on a GPU."""
    config = model.config
    return (
        ids.device.type != "cpu"
        and getattr(config, "_attn_implementation", None) == "sdpa"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) <= KINDS
        and getattr(config, "attn_logit_softcapping", None) is None
        and not getattr(config, "attention_dropout", 0.0)
        and bool(getattr(config, "is_causal", True))
    )


@dataclass
class _Packed:
    """What the layers of one forward pass share.

    Attributes:
        positions: [B, L].
        documents: On the GPU.
        masks: What a token may see, by the width of the window, [B, 1, L, L] bool.
    """

    positions: torch.Tensor
    documents: Documents
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        if window not in self.masks:
            index = torch.arange(self.positions.shape[1], device=self.positions.device)
            first = index - self.positions  # of each token's document
            if window is not None:
                first = torch.maximum(first, index - window + 1)
            seen = (index <= index[:, None]) & (index >= first[..., None])
            self.masks[window] = seen[:, None]
        return self.masks[window]


def states_in_documents(
    model: CausalModel, body: Any, ids: torch.Tensor, positions: torch.Tensor, documents: Documents
) -> torch.Tensor:
    """Hidden states [B, L, H] of a model's body; everything is on its device."""
    with attending(model):
        result: torch.Tensor = body(
            input_ids=ids, position_ids=positions, use_cache=False, documents=_Packed(positions, documents)
        ).last_hidden_state
    return result


def attending(model: CausalModel) -> contextlib.AbstractContextManager[None]:
    """While the body runs, the model's layers call :func:`attention`; they need the argument ``documents``."""
    return attention_named(model, NAME, _interface)


def _interface(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: _Packed,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    # A layer that asks for more than plain attention must not get less. models/proof.py meets this before the model is used.
    asked = [name for name in ("s_aux", "softcap", "position_bias", "head_mask") if more.get(name) is not None]
    own = {None, getattr(module.config, "sliding_window", None), getattr(module, "sliding_window", None)}
    if attention_mask is not None or asked or sliding_window not in own:
        raise NotImplementedError(f"not plain attention: {asked or 'a mask or window of its own'}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Rotary embeddings may have raised queries and keys to another format than values have.
    key, value = key.to(query.dtype), value.to(query.dtype)
    return attention(query, key, value, documents, scale, sliding_window), None


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: _Packed, scale: float, window: int | None
) -> torch.Tensor:
    """Causal attention inside documents.

    Args:
        query: [B, G·R, L, W].
        key: [B, G, L, W].
        value: As the key.
        packed: Of the forward pass.
        scale: Factor on the scores.
        window: Tokens that a token sees, itself among them; None: all before it.

    Returns:
        [B, L, G·R, W].
    """
    batch, heads, length, width = query.shape
    if flash(query):
        kernel, takes_groups = varlen()
        flat = [part.transpose(1, 2).reshape(batch * length, -1, width) for part in (query, key, value)]
        more: dict[str, Any] = {}
        if key.shape[1] != heads:
            if takes_groups:
                more = {"enable_gqa": True}
            else:
                flat[1:] = [part.repeat_interleave(heads // key.shape[1], dim=1) for part in flat[1:]]
        left = -1 if window is None or window > packed.documents.longest else window - 1
        ends, longest = packed.documents.ends, packed.documents.longest
        found = kernel(*flat, ends, ends, longest, longest, scale=scale, window_size=(left, 0), **more)
        return found.view(batch, length, heads, width)
    if key.shape[1] != heads:
        repeats = heads // key.shape[1]
        key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
    answer = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=packed.mask(window), scale=scale
    )
    return answer.transpose(1, 2)


def flash(query: torch.Tensor) -> bool:
    """Whether the flash kernel takes queries [B, heads, L, W]: 16 bits, on an NVIDIA card of Ampere or later."""
    width = query.shape[-1]
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and width % 8 == 0
        and width <= WIDEST_HEAD
        and varlen()[0] is not None
        and _capable(query.device.index or 0)
    )


@functools.cache
def varlen() -> tuple[Callable[..., torch.Tensor] | Any, bool]:
    """PyTorch's attention over documents of different lengths, None where it has none; and whether it takes groups itself (2.13
    does, 2.11 does not).
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, False
    return varlen_attn, "enable_gqa" in inspect.signature(varlen_attn).parameters


@functools.cache
def _capable(index: int) -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability(index) >= (8, 0)
