"""The order of a fresh student's feed-forward channels: a secret of its owner's, drawn from all 256 bits.

A library's generator takes a seed of 32 bits, which can be tried. Initial weights are drawn independently of each other, so
any order of the channels is as probable as any other, and reordering them changes no distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from stillroom.core.secret import Secret

if TYPE_CHECKING:
    from torch import nn

    from stillroom.models.families.family import Family
    from stillroom.models.types import CausalModel


def order_channels(model: CausalModel, family: Family, secret: Secret) -> None:
    """Reorder the channels of every feed-forward layer of an untrained model, in place; its function stays the same.

    Args:
        model: A causal language model.
        family: Says along which axes a matrix has channels.
        secret: Decides the order, by layer.
    """
    for number, layer in enumerate(family.layers(model)):
        orders: dict[int, torch.Tensor] = {}
        for name, (rows, columns) in family.axes.items():
            if not {rows, columns} & {"channels", "gated"}:
                continue
            module = layer.get_submodule(name)
            for weight, axis, kind in _axes(module, rows, columns):
                count = weight.shape[axis] // (2 if kind == "gated" else 1)
                if count not in orders:
                    orders[count] = torch.from_numpy(secret.permutation(f"channels of layer {number}", count))
                order = orders[count]
                # Gate and up one after the other: both halves in the same order.
                index = torch.cat([order, order + count]) if kind == "gated" else order
                weight.data = weight.data.index_select(axis, index).contiguous()


def _axes(module: nn.Module, rows: str, columns: str | None) -> list[tuple[nn.Parameter, int, str]]:
    found: list[tuple[nn.Parameter, int, str]] = []
    parameters = dict(module.named_parameters(recurse=False))
    for axis, kind in ((0, rows), (1, columns)):
        if kind not in ("channels", "gated"):
            continue
        found.append((parameters["weight"], axis, kind))
        if axis == 0 and "bias" in parameters:
            found.append((parameters["bias"], 0, kind))
    return found
