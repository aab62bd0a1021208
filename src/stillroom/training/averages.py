"""AdamW's averages in 8 bits, by blocks (Dettmers et al. 2022, arXiv 2110.02861).

Each block of 256 numbers is divided by its largest magnitude, and each number is stored as one of 256 values that are close
together near 0 and far apart near 1 (section 2.1, dynamic tree quantization). Two things differ from the paper:

- A number is rounded at random to one of its two neighbours, so that its expectation is the number. Rounded to the nearest, an
  average that changes by less than half a step would never change.
- Of squared gradients the root is stored, and one that is not 0 never becomes 0: a step divides by it.

Legend: N numbers of a parameter, B blocks.
"""

from __future__ import annotations

import functools

import torch

BLOCK = 256
"""Numbers with one scale."""
SLICE = 1 << 22
"""Numbers that are rounded at the same time: what that holds besides is small beside a parameter's float32 numbers."""
DECADES = 7
"""Powers of ten that the values reach down to."""
LEAST = 4096
"""Parameters of fewer numbers keep their averages in float32."""


@functools.cache
def _values(signed: bool) -> torch.Tensor:
    """The 256 values, ascending, from -1 or 0 to 1."""
    found = [0.0, 1.0]
    for decade in range(DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (0 if signed else 1)) + 1, dtype=torch.float64)
        means = (10.0 ** (decade - DECADES + 1) * (edges[:-1] + edges[1:]) / 2).tolist()
        found += means + ([-value for value in means] if signed else [])
    if signed:
        # -1 in place of the negative value next to 0, so that a block's largest magnitude is exact whatever its sign.
        found[found.index(max(value for value in found if value < 0))] = -1.0
    return torch.tensor(sorted(found), dtype=torch.float32)


def encode(numbers: torch.Tensor, *, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [B · 256] uint8 and scales [B] float32 of float32 numbers of any shape; without ``signed`` none is below 0."""
    flat = numbers.reshape(-1)
    codes, scales = [], []
    for begin in range(0, flat.numel(), SLICE):
        part = flat[begin : begin + SLICE]
        rest = -part.numel() % BLOCK
        blocks = (torch.nn.functional.pad(part, (0, rest)) if rest else part).view(-1, BLOCK)
        if not signed:
            blocks = blocks.sqrt()
        scale = blocks.abs().amax(1)
        codes.append(_rounded(blocks / scale.clamp_min(1e-38)[:, None], signed).flatten())
        scales.append(scale)
    return torch.cat(codes), torch.cat(scales)


def _rounded(shares: torch.Tensor, signed: bool) -> torch.Tensor:
    """Codes of numbers between -1 and 1, drawn so that the value's expectation is the number."""
    values = _values(signed).to(shares.device)
    # The last value at most as large; the largest has no upper neighbour.
    below = (torch.bucketize(shares, values, out_int32=True, right=True) - 1).clamp_(0, len(values) - 2)
    low, high = values[below], values[below + 1]
    up = torch.rand_like(shares) < (shares - low) / (high - low)
    found = below + up
    if not signed:
        found = torch.where((shares > 0) & (found == 0), 1, found)
    return found.to(torch.uint8)


def decode(codes: torch.Tensor, scales: torch.Tensor, shape: torch.Size, *, signed: bool) -> torch.Tensor:
    """The numbers, float32, of a shape of N elements."""
    values = _values(signed).to(codes.device)
    found = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    for begin in range(0, codes.numel(), SLICE):
        part = values[codes[begin : begin + SLICE].int()].view(-1, BLOCK)
        part *= scales[begin // BLOCK : begin // BLOCK + len(part), None]
        found[begin : begin + SLICE] = (part if signed else part.square_()).flatten()
    return found[: shape.numel()].view(shape)
