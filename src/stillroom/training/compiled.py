"""Compiles a student's layers with ``torch.compile``, each by itself and for fixed shapes.

One graph serves all layers of one kind, so that a deep model compiles as fast as a shallow one. Batches are padded to a
multiple of :data:`MULTIPLE` tokens, so that there are few shapes; what depends on a batch's documents (attention) is not
compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.models.at_hand import stack_of
from stillroom.models.attention import APART
from stillroom.models.forward import way_of

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

MULTIPLE = 128
"""Tokens that a row is padded to a multiple of."""
BACKEND = "inductor"
"""What ``torch.compile`` makes code with."""


def compile_layers(model: CausalModel) -> None:
    """Let a model's layers run compiled, in place; the model's values stay what they are but for rounding."""
    way_of(model)  # proved before: the proof's texts have other shapes
    setattr(model, APART, True)
    for layer in stack_of(model):
        layer.compile(dynamic=False, backend=BACKEND)
