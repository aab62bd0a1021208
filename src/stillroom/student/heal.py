"""Repairs removed layers in closed form, before any training. Knows nothing of how layers were chosen.

A run of removed layers is replaced by the linear map that carries what is left closest to what the teacher had after the
run, in least squares (Shopkhoev et al. 2025, arXiv 2505.02819). The map acts on the last product of the layer before the
run and is folded into that product's matrix, so that the student has no part that its family does not have.

Legend: N tokens, H hidden width, F feed-forward width.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from stillroom.corpus.sequences import Sequences
from stillroom.student.adapters import Adapter
from stillroom.student.importance import watching
from stillroom.teacher.forward import hidden_states

RIDGE = 1e-2
"""Pull of the map to the identity, as a share of the mean square of what it acts on."""


def runs_of_removed(kept: list[int], count: int) -> list[tuple[int, int]]:
    """Runs of removed layers that have a kept layer before them: (place in the student of that layer, last removed)."""
    ends = [*kept, count]
    return [(place, after - 1) for place, (before, after) in enumerate(pairwise(ends)) if after - before > 1]


@torch.no_grad()
def heal(student: Any, teacher: Any, adapter: Adapter, kept: list[int], sample: Sequences) -> int:
    """Fold a map into the layer before every run of removed layers, from the bottom up; returns how many were folded.

    Every map is fitted on what the student, repaired so far, really produces.

    Args:
        student: The teacher without the removed layers; changed in place.
        teacher: The teacher.
        adapter: Their family; one without a foldable product is left alone.
        kept: Indices of the teacher's layers that the student has.
        sample: Sequences to fit on.
    """
    if adapter.last_product is None:
        return 0
    teacher_layers = adapter.layers(teacher)
    student_layers = adapter.layers(student)
    runs = runs_of_removed(kept, len(teacher_layers))
    real = (sample.segments >= 0).flatten()
    wanted = {str(last): teacher_layers[last] for _, last in runs}
    with watching(wanted, inputs=False) as targets:
        hidden_states(teacher, sample.ids, sample.positions)
    scale = float(getattr(student.config, "residual_multiplier", None) or 1.0)
    for place, last in runs:
        layer = student_layers[place]
        product = layer.get_submodule(adapter.last_product)
        with watching({"product": product}, False) as produced, watching({"layer": layer}, False) as left:
            hidden_states(student, sample.ids, sample.positions)
        acted = produced["product"][real] * scale  # [N, H]
        rest = left["layer"][real] - acted
        fold(product, ridge_map(acted, targets[str(last)][real] - rest))
    return len(runs)


def ridge_map(acted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The map M [H, H] of least ``|acted M − wanted|² + λ |M − 1|²``.

    Args:
        acted: What the map acts on, [N, H].
        wanted: What it should give, [N, H].
    """
    acted, wanted = acted.double(), wanted.double()
    width = acted.shape[1]
    eye = torch.eye(width, dtype=torch.float64, device=acted.device)
    gram = acted.T @ acted
    penalty = RIDGE * float(gram.diagonal().mean()) + 1e-12
    return torch.linalg.solve(gram + penalty * eye, acted.T @ wanted + penalty * eye).float()


def fold(product: Any, mapping: torch.Tensor) -> None:
    """Put a map behind a linear layer: ``(x Wᵀ + b) M = x (Mᵀ W)ᵀ + b M``."""
    weight = product.weight
    weight.copy_((mapping.T.to(weight.device) @ weight.float()).to(weight.dtype))
    if product.bias is not None:
        product.bias.copy_((product.bias.float() @ mapping.to(weight.device)).to(weight.dtype))
