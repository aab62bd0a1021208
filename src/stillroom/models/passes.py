"""The ways to run a model, and its output layer. Which one is right is proved by :mod:`stillroom.models.proof`.

Legend: B sequences, L tokens, H hidden width, V vocabulary, D documents.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stillroom.models.attention import blocks_of, packed
from stillroom.models.documents import attending

if TYPE_CHECKING:
    from stillroom.models.types import Body, CausalModel

WAY = "stillroom_way"
"""The attribute of a model that holds its :class:`Way`."""
FILL = 0.9
"""Least share of tokens that are not padding where documents run one per row."""


@dataclass(frozen=True)
class Way:
    """How a model is run, as proved.

    Attributes:
        packed: Whether the documents of a sequence go through the model together.
        blocks: Whether :func:`stillroom.models.attention.packed` may stand in for the model's attention.
        documents: Whether :mod:`stillroom.models.documents` may stand in for the model's attention; asked on GPUs only.
        by_hand: Whether :mod:`stillroom.models.stack` may stand in for the model's layers.
        at_output_layer: Whether hidden states are taken at the entry of the output layer, because what the body returns goes
            through more than that layer.
        scale: Factor on the logits.
        softcap: Cap c in ``c · tanh(logits / c)``, or None.
        reason: Why documents run one per row; empty where they do not.
    """

    packed: bool = True
    blocks: bool = True
    documents: bool = False
    by_hand: bool = False
    at_output_layer: bool = False
    scale: float = 1.0
    softcap: float | None = None
    reason: str = ""


def body(model: CausalModel) -> Body:
    """The network under the output layer."""
    under: Any = model.base_model
    if under is model:  # Llama 4 calls itself the base of its vision model
        under = model.get_decoder()
        if under is model:
            under = next(module for name, module in model.named_children() if hasattr(module, "embed_tokens"))
    found: Body = under
    return found


def states(model: CausalModel, way: Way, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Hidden states [B, L, H] by the model's ordinary forward pass; positions are left to the model where they are None."""
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
    if positions is not None:
        inputs["position_ids"] = positions
    if not way.at_output_layer:
        result: torch.Tensor = body(model)(**inputs).last_hidden_state
        return result
    with _entry(model) as taken:
        model(**inputs)
    return taken[0]


def states_in_blocks(model: CausalModel, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states [B, L, H] with attention in blocks of queries."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else next(model.parameters()).dtype
    with packed(model):
        result: torch.Tensor = body(model)(
            input_ids=ids, position_ids=positions, use_cache=False, blocks=blocks_of(positions, dtype)
        ).last_hidden_state
    return result


def attention_of(model: CausalModel, arguments: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """The attention that a layer's arguments were made for, for who runs a layer by itself: it is the model's that changes."""
    if "blocks" in arguments:
        return packed(model)
    if "documents" in arguments:
        return attending(model)
    return contextlib.nullcontext()


def states_by_row(model: CausalModel, way: Way, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Hidden states [B, L, H] with one document per row, padded on the right, where nothing of a causal model sees it.

    Documents of similar lengths run together, so that at most a tenth is padding, and never more tokens at once than the
    sequences have.
    """
    flat, found, order = ids.flatten(), [], []
    for documents in _by_length(_documents(positions), ids.numel()):
        longest = max(end - begin for begin, end in documents)
        rows = torch.stack(
            [
                torch.nn.functional.pad(flat[begin:end], (0, longest - end + begin), value=int(flat[begin]))
                for begin, end in documents
            ]
        )
        result = states(model, way, rows, None)
        for row, (begin, end) in enumerate(documents):
            found.append(result[row, : end - begin])
            order.append(torch.arange(begin, end))
    backwards = torch.cat(order).argsort().to(ids.device)
    return torch.cat(found).index_select(0, backwards).view(*ids.shape, -1)


def _documents(positions: torch.Tensor) -> list[tuple[int, int]]:
    """Begin and end of every document, counted through all sequences one after the other."""
    where = positions.cpu()
    begins = torch.ones_like(where, dtype=torch.bool)
    begins[:, 1:] = where[:, 1:] != where[:, :-1] + 1
    if bool((where[begins] != 0).any()):
        raise ValueError("a model that runs one document per row needs documents whose positions begin at 0")
    edges = [*begins.flatten().nonzero().squeeze(1).tolist(), where.numel()]
    return list(itertools.pairwise(edges))


def _by_length(documents: list[tuple[int, int]], most: int) -> Iterator[list[tuple[int, int]]]:
    """Documents in batches: the longest first, each batch at least :data:`FILL` full and of at most ``most`` tokens."""
    batch: list[tuple[int, int]] = []
    longest = tokens = 0
    for begin, end in sorted(documents, key=lambda document: document[0] - document[1]):
        length = end - begin
        rows = longest * (len(batch) + 1)
        if batch and (rows > most or tokens + length < FILL * rows):
            yield batch
            batch, longest, tokens = [], 0, 0
        batch.append((begin, end))
        longest, tokens = max(longest, length), tokens + length
    yield batch


@contextlib.contextmanager
def _entry(model: CausalModel) -> Iterator[list[torch.Tensor]]:
    """While the model runs, what its output layer is given; the layer itself does not compute."""
    taken: list[torch.Tensor] = []
    layer = model.get_output_embeddings()

    def instead(given: torch.Tensor) -> torch.Tensor:
        taken.append(given)
        return given

    before = layer.__dict__.get("forward")
    layer.forward = instead  # type: ignore[method-assign,assignment]
    try:
        yield taken
    finally:
        if before is None:
            del layer.__dict__["forward"]
        else:
            layer.forward = before  # type: ignore[method-assign]


@dataclass(frozen=True)
class Head:
    """The output layer: ``logits = softcap(scale · (hidden @ matrix.T + bias))``.

    Attributes:
        matrix: Output matrix, [V, H]; the embedding itself where they are tied.
        bias: [V], or None.
        scale: Factor on the logits (Granite divides them by ``logits_scaling``; 1 elsewhere).
        softcap: Gemma 2's cap c in ``c · tanh(logits / c)``, or None.
    """

    matrix: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def finish(self, products: torch.Tensor) -> torch.Tensor:
        """Logits of ``hidden @ matrix.T + bias``, float32."""
        if self.scale != 1.0:
            products = products * self.scale
        return products if self.softcap is None else self.softcap * torch.tanh(products / self.softcap)


def head_of(model: CausalModel, way: Way) -> Head:
    """The output layer of a model that is run this way."""
    layer = model.get_output_embeddings()
    return Head(layer.weight, layer.bias, way.scale, way.softcap)
