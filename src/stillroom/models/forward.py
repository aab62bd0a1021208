"""Forward passes over packed sequences: to hidden states, and from there to logits.

How a model is run is proved once for each model (:mod:`stillroom.models.proof`): the documents of a sequence go through it
together where that gives what they give one by one; otherwise each document has a row of its own.

Legend: B sequences, L tokens, H hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from stillroom.models import stack
from stillroom.models.attention import applies, packed
from stillroom.models.documents import Documents, attending, documents_of, states_in_documents
from stillroom.models.documents import applies as applies_documents
from stillroom.models.passes import WAY, Head, Way, body, head_of, states, states_by_row, states_in_blocks
from stillroom.models.proof import prove as prove  # what measures memory puts another in its place

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

__all__ = ["Head", "attention_again", "body", "hidden_states", "logits_from_hidden", "output_head", "way_of"]


def way_of(model: CausalModel) -> Way:
    """How a model is run: as proved when it was opened, or else proved now.

    Raises:
        UnsupportedModel: It cannot be run rightly, by name.
    """
    way = getattr(model, WAY, None)
    if isinstance(way, Way):
        return way
    return prove(model).way


def hidden_states(
    model: CausalModel, ids: torch.Tensor, positions: torch.Tensor, documents: Documents | None = None
) -> torch.Tensor:
    """Hidden states [B, L, H] of packed sequences, as the output layer takes them.

    Documents are kept apart: by positions that start again at 0 where the model heeds them, or else each runs in a row of
    its own.

    Args:
        model: A Hugging Face causal language model, on any device; ids and positions are carried there.
        ids: Token ids, [B, L].
        positions: Position of each token inside its document, [B, L].
        documents: Of the positions, as :func:`stillroom.models.documents.documents_of` finds them. Only a GPU asks for
            them, and waits where they are not given and the positions are not on the CPU.

    Raises:
        UnsupportedModel: The model cannot be run rightly, by name.
    """
    way = way_of(model)
    device = model.get_input_embeddings().weight.device
    known = positions
    ids, positions = ids.to(device), positions.to(device)
    if not way.packed:
        return states_by_row(model, way, ids, positions)
    if (
        way.by_hand
        and ids.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    ):
        layers = stack.layers_of(model)
        if layers is not None:
            return stack.hidden_states(model, layers, ids, positions)
    if way.documents and applies_documents(model, ids):
        found = documents_of(known.cpu()) if documents is None else documents
        return states_in_documents(model, body(model), ids, positions, found.to(device))
    if way.blocks and not way.at_output_layer and applies(model, ids):
        return states_in_blocks(model, ids, positions)
    return states(model, way, ids, positions)


def attention_again(model: CausalModel, ids: torch.Tensor) -> contextlib.AbstractContextManager[None]:
    """The attention that :func:`hidden_states` gave the model's layers, for a backward pass that runs them again.

    Args:
        model: The model.
        ids: Those of the forward pass, on its device, [B, L].
    """
    way = way_of(model)
    if way.packed and way.documents and applies_documents(model, ids):
        return attending(model)
    if way.packed and way.blocks and not way.at_output_layer and applies(model, ids):
        return packed(model)
    return contextlib.nullcontext()


def output_head(model: CausalModel) -> Head:
    """The output layer of a model, with what its family does to logits, as proved. Errors as in :func:`way_of`."""
    return head_of(model, way_of(model))


def logits_from_hidden(model: CausalModel, hidden: torch.Tensor) -> torch.Tensor:
    """Logits [..., V] in float32 of hidden states [..., H]."""
    head = output_head(model)
    return head.finish(torch.nn.functional.linear(hidden, head.matrix, head.bias).float())
