"""Llama's decoder layers by hand, forward and backward, for CPUs.

The models' own code makes some 60 small operations per layer, each of them split over all threads. Here

1. tokens are one line without padding, divided into as many shares as there are threads. A share runs through all layers on
   a thread of its own; it waits for another only for keys and values of a document that began there, and for the
   weights' gradients, which are added in a fixed order: results do not depend on timing.
2. queries, keys and values are one product, gate and up another (their weights are neighbours in memory, see
   :func:`join_weights`), residuals are added by the products themselves, and gradients of weights add up in place.
3. attention is computed document by document in blocks of queries, whose probabilities are kept for the backward pass.
4. the residual stream's gradient stays in float32; what is cheap to compute is computed again.

Legend: T tokens, N tokens of a share, H hidden size, I intermediate size, G groups of keys and values (`kv_heads`), R query
heads a group, D size of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stillroom.models.threads import Milestones, run_together, split

if TYPE_CHECKING:
    from stillroom.models.types import Body, CausalModel

FAMILIES = ("llama", "mistral", "qwen2")
"""Families whose layers are exactly these: RMSNorm, rotary attention, RMSNorm, SwiGLU."""
BLOCK = 192
"""Queries of a document that are answered together, at most."""
LEAST = 128
"""Tokens of a share, at least."""


@dataclass(frozen=True)
class Layer:
    """A layer's parameters and sizes."""

    norm1: nn.Parameter
    qkv: list[nn.Parameter]
    bias: list[nn.Parameter]
    output: nn.Parameter
    norm2: nn.Parameter
    gate_up: list[nn.Parameter]
    down: nn.Parameter
    groups: int
    repeats: int
    width: int
    scale: float
    eps: tuple[float, float]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the order of :attr:`Gradients.layers`."""
        return [self.norm1, *self.qkv, *self.bias, self.output, self.norm2, *self.gate_up, self.down]


def layers_of(model: CausalModel) -> list[Layer] | None:
    """The layers of a model whose every part is one of Llama's; None for any other."""
    config, body = model.config, model.base_model
    window = getattr(config, "sliding_window", None)
    if (
        config.model_type not in FAMILIES
        or getattr(config, "hidden_act", None) != "silu"
        or getattr(config, "attention_dropout", 0.0)
        or (window is not None and getattr(config, "use_sliding_window", True))
        or any(getattr(module, "_compiled_call_impl", None) is not None for module in body.modules())
        or type(body).__name__ not in ("LlamaModel", "MistralModel", "Qwen2Model")
        or type(body.embed_tokens) is not nn.Embedding
        or any(_changed(module) for module in body.modules())
    ):
        return None
    found = []
    for layer in body.layers:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        others = [attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        biases = [linear.bias for linear in qkv if linear.bias is not None]
        parts = (layer, attention, mlp, layer.input_layernorm, layer.post_attention_layernorm)
        if (
            any(type(part).__module__ != type(body).__module__ for part in parts)
            or any(type(linear) is not nn.Linear for linear in qkv + others)
            or any(linear.bias is not None for linear in others)
            or len(biases) not in (0, 3)
            or attention.head_dim % 2
        ):
            return None
        width = attention.head_dim
        heads, groups = qkv[0].weight.shape[0] // width, qkv[1].weight.shape[0] // width
        first: Any = layer.input_layernorm
        second: Any = layer.post_attention_layernorm
        found.append(
            Layer(
                first.weight,
                [linear.weight for linear in qkv],
                biases,
                attention.o_proj.weight,
                second.weight,
                [mlp.gate_proj.weight, mlp.up_proj.weight],
                mlp.down_proj.weight,
                groups,
                heads // groups,
                width,
                float(attention.scaling),
                (float(first.variance_epsilon), float(second.variance_epsilon)),
            )
        )
    return found


def _changed(module: nn.Module) -> bool:
    """Whether something watches or replaces what a module computes."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


@torch.no_grad()
def join_weights(layers: Sequence[Layer]) -> None:
    """Move weights whose products are made as one next to each other in memory; their values stay."""
    for layer in layers:
        for group in (layer.qkv, layer.bias, layer.gate_up):
            if group:
                whole = torch.cat([parameter.data for parameter in group])
                for parameter, part in zip(group, torch.split(whole, [p.shape[0] for p in group]), strict=True):
                    parameter.data = part


def _neighbours(group: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Weights one under the other as they are in memory; None where they are not."""
    first = group[0].detach()
    place = first.data_ptr()
    for one in group:
        if one.data_ptr() != place or not one.is_contiguous():
            return None
        place += one.numel() * one.element_size()
    if first.untyped_storage().data_ptr() + first.untyped_storage().nbytes() < place:
        return None
    return first.as_strided((sum(one.shape[0] for one in group), *first.shape[1:]), first.stride())


def _joined(group: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weights one under the other: as they are in memory, or a copy."""
    whole = _neighbours(group)
    return torch.cat([one.detach() for one in group]) if whole is None else whole


def _product(states: torch.Tensor, whole: torch.Tensor | None, group: Sequence[torch.Tensor]) -> torch.Tensor:
    """States [N, H] times the weights of a group, side by side; ``whole`` are the same weights, where they are joined."""
    if whole is None:
        return torch.cat([torch.mm(states, one.t()) for one in group], dim=1)
    return torch.mm(states, whole.t())


@dataclass(frozen=True)
class Line:
    """Tokens of packed sequences in one line, and where they are divided.

    Attributes:
        ids: [T].
        positions: Position of each inside its document, [T].
        starts: Where the document of each token begins in the line, for the first token of every document.
        cuts: Shares: share s has the tokens from ``cuts[s]`` to ``cuts[s + 1]``.
        rows: Where the tokens whose hidden states are wanted are in the line, ascending, [rows].
    """

    ids: torch.Tensor
    positions: torch.Tensor
    starts: list[int]
    cuts: list[int]
    rows: torch.Tensor

    def first_key(self, share: int) -> int:
        """Where the document of a share's first token begins, perhaps in a share before."""
        return max(start for start in self.starts if start <= self.cuts[share])

    def blocks(self, share: int) -> list[tuple[int, int, int]]:
        """Blocks of a share's queries: first, end, and the first key, which is where their document begins."""
        begin, end = self.cuts[share], self.cuts[share + 1]
        found = []
        for start, stop in zip(self.starts, [*self.starts[1:], self.ids.shape[0]], strict=True):
            first, last = max(start, begin), min(stop, end)
            if first >= last:
                continue
            count = -(-(last - first) // BLOCK)
            edges = [first + (last - first) * number // count for number in range(count + 1)]
            found += [(a, b, start) for a, b in itertools.pairwise(edges)]
        return found


def line_of(ids: torch.Tensor, positions: torch.Tensor, rows: torch.Tensor) -> Line:
    """The line of packed sequences [B, L], without the tokens behind the last wanted one of each document.

    Args:
        ids: Token ids, [B, L].
        positions: Position inside the document, [B, L].
        rows: Wanted tokens of the flattened [B · L], ascending.
    """
    begins = torch.ones_like(ids, dtype=torch.bool)
    begins[:, 1:] = positions[:, 1:] != positions[:, :-1] + 1
    document = begins.flatten().cumsum(0) - 1
    index = torch.arange(ids.numel())
    last = torch.full((int(document[-1]) + 1,), -1).scatter_reduce_(0, document[rows], rows, "amax")
    needed = (index <= last[document]).nonzero().squeeze(1)
    document = document[needed]
    starts = [0, *(document.diff().nonzero().squeeze(1) + 1).tolist()]
    count = needed.shape[0]
    shares = split(count, LEAST)
    return Line(
        ids.flatten()[needed],
        positions.flatten()[needed],
        starts,
        [count * share // shares for share in range(shares + 1)],
        torch.searchsorted(needed, rows),
    )


@dataclass(frozen=True)
class Gradients:
    """Gradients of a stack: of every layer's :attr:`Layer.parameters`, the final norm and the embedding (both float32)."""

    layers: list[list[torch.Tensor]]
    norm: torch.Tensor
    embedding: torch.Tensor


Loss = Callable[[int, torch.Tensor, slice], torch.Tensor | None]
"""Takes a share's number, the hidden states of its wanted tokens [rows, H], and which of all wanted tokens these are;
returns the gradient with respect to them, or None where no gradient is wanted."""


class Stack:
    """One pass through the layers of a model.

    Args:
        body: The network under the output layer.
        layers: Of :func:`layers_of`.
        line: The tokens.
        backward: Whether there will be a backward pass.
    """

    def __init__(self, body: Body, layers: Sequence[Layer], line: Line, *, backward: bool) -> None:
        self.backward = backward
        self.body, self.layers, self.line = body, layers, line
        parts: Any = body
        self.embedding: torch.Tensor = parts.embed_tokens.weight.detach()
        self.dtype = self.embedding.dtype
        states = self.embedding.new_empty(1, 1, 1)
        self.norm: Any = parts.norm
        cos, sin = parts.rotary_emb(states, line.positions[None])
        half = cos.shape[-1] // 2
        self.cos, self.sin = cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()
        join = _joined if backward else _neighbours
        self.qkv = [join(layer.qkv) for layer in layers]
        self.gate_up = [join(layer.gate_up) for layer in layers]
        self.bias = [_joined(layer.bias) if layer.bias else None for layer in layers]
        count = line.ids.shape[0]
        shapes = [(layer.groups, count, layer.width) for layer in layers]
        self.keys = [states.new_empty(shape) for shape in shapes]
        self.values = [states.new_empty(shape) for shape in shapes]
        self.triangle = states.new_full((BLOCK, BLOCK), float("-inf")).triu_(1)[:, None]
        self.milestones = Milestones()
        # Gradients of keys and values for the shares before, by share and layer: first token, keys', values'.
        self.handed: dict[tuple[int, int], tuple[int, torch.Tensor, torch.Tensor]] = {}
        self.joined_grads: list[list[torch.Tensor]] = [[] for _ in layers]
        self.grad_norm: torch.Tensor | None = None
        self.grad_embedding: torch.Tensor | None = None

    def run(self, loss: Loss) -> Gradients | None:
        """Forward, the loss, and backward from the gradient that it gives."""
        shares = len(self.line.cuts) - 1

        def work(share: int) -> None:
            try:
                with torch.no_grad():
                    _Share(self, share).run(loss)
            except BaseException:
                self.milestones.fail()
                raise

        run_together(shares, work)
        if not self.backward:
            return None
        found = []
        for layer, (norm1, qkv, bias, output, norm2, gate_up, down) in zip(self.layers, self.joined_grads, strict=True):
            found.append(
                [
                    norm1,
                    *torch.split(qkv, [p.shape[0] for p in layer.qkv]),
                    *torch.split(bias, [p.shape[0] for p in layer.bias]),
                    output,
                    norm2,
                    *torch.split(gate_up, [p.shape[0] for p in layer.gate_up]),
                    down,
                ]
            )
        assert self.grad_norm is not None
        assert self.grad_embedding is not None
        return Gradients(found, self.grad_norm, self.grad_embedding)


@dataclass
class _Kept:
    """What the backward pass of a layer needs of a share."""

    normed1: torch.Tensor
    rstd1: torch.Tensor
    queries: torch.Tensor
    probabilities: list[torch.Tensor]
    attended: torch.Tensor
    normed2: torch.Tensor
    rstd2: torch.Tensor
    gate_up: torch.Tensor
    gated: torch.Tensor


class _Share:
    """The tokens that one thread computes."""

    def __init__(self, stack: Stack, number: int) -> None:
        line = stack.line
        self.stack, self.number = stack, number
        self.begin, self.end = line.cuts[number], line.cuts[number + 1]
        self.blocks = line.blocks(number)
        self.first_key = line.first_key(number)
        self.cos, self.sin = stack.cos[self.begin : self.end], stack.sin[self.begin : self.end]
        self.shares = len(line.cuts) - 1

    def run(self, loss: Loss) -> None:
        """All layers, the loss, and all layers back."""
        stack, line = self.stack, self.stack.line
        stream = stack.embedding.index_select(0, line.ids[self.begin : self.end])
        kept = [self._forward(number, stream, stack.backward) for number in range(len(stack.layers))]
        normed, rstd, hidden = _rms_norm(stream, stack.norm.weight, stack.norm.variance_epsilon)
        del stream
        low, high = torch.searchsorted(line.rows, torch.tensor([self.begin, self.end])).tolist()
        wanted = line.rows[low:high] - self.begin
        given = loss(self.number, hidden.index_select(0, wanted), slice(low, high))
        if not stack.backward:
            return
        assert given is not None
        grad = torch.zeros(hidden.shape, dtype=torch.float32)
        scale = torch.zeros_like(grad).index_copy_(0, wanted, given.float())
        grad_norm = _rms_norm_backward(grad, scale, normed, rstd, stack.norm.weight)
        del hidden, normed, given, scale
        for number in reversed(range(len(stack.layers))):
            layer = kept.pop()
            assert layer is not None
            self._backward(number, grad, layer)
            del layer
        self._embedding(grad, grad_norm)

    def _forward(self, number: int, stream: torch.Tensor, keep: bool) -> _Kept | None:
        """Layer ``number`` on the residual stream [N, H], which is changed in place."""
        stack, layer = self.stack, self.stack.layers[number]
        count, groups, repeats, width = self.end - self.begin, layer.groups, layer.repeats, layer.width
        heads = groups * repeats
        # 1. Queries, keys and values; rotary embeddings.
        normed1, rstd1, states = _rms_norm(stream, layer.norm1, layer.eps[0])
        qkv = _product(states, stack.qkv[number], layer.qkv)
        if (bias := stack.bias[number]) is not None:
            qkv += bias
        qkv = qkv.view(count, heads + 2 * groups, width)
        turned = torch.empty(count, heads + groups, width, dtype=qkv.dtype)
        _rotate(qkv[:, : heads + groups], self.cos, self.sin, turned)
        keys, values = stack.keys[number], stack.values[number]
        keys[:, self.begin : self.end] = turned[:, heads:].transpose(0, 1)
        values[:, self.begin : self.end] = qkv[:, heads + groups :].transpose(0, 1)
        stack.milestones.reach(("keys", number, self.number))
        queries = torch.empty(groups, count, repeats, width, dtype=qkv.dtype)
        torch.mul(turned[:, :heads].view(count, groups, repeats, width).transpose(0, 1), layer.scale, out=queries)
        del states, qkv, turned
        # 2. Attention, one block of a document's queries after the other.
        for share in self._before():
            stack.milestones.wait(("keys", number, share))
        answers = torch.empty(groups, count, repeats, width, dtype=stream.dtype)
        probabilities = []
        for a, b, first in self.blocks:
            asked = queries[:, a - self.begin : b - self.begin].view(groups, (b - a) * repeats, width)
            scores = torch.bmm(asked, keys[:, first:b].transpose(1, 2))
            scores.view(groups, b - a, repeats, b - first)[..., a - first :] += stack.triangle[: b - a, :, : b - a]
            chances = torch.softmax(scores, dim=-1)
            if keep:
                probabilities.append(chances)
            answers[:, a - self.begin : b - self.begin] = torch.bmm(chances, values[:, first:b]).view(
                groups, b - a, repeats, width
            )
        attended = answers.transpose(0, 1).reshape(count, heads * width)
        stream.addmm_(attended, layer.output.t())
        # 3. SwiGLU.
        normed2, rstd2, states = _rms_norm(stream, layer.norm2, layer.eps[1])
        gate_up = _product(states, stack.gate_up[number], layer.gate_up)
        gate, up = gate_up.chunk(2, dim=1)
        gated = torch.nn.functional.silu(gate)
        stream.addmm_(gated * up, layer.down.t())
        if not keep:
            return None
        return _Kept(normed1, rstd1, queries, probabilities, attended, normed2, rstd2, gate_up, gated)

    def _before(self) -> list[int]:
        """The shares before in which a document of this one has tokens."""
        cuts = self.stack.line.cuts
        return [share for share in range(self.number) if cuts[share + 1] > self.first_key]

    def _backward(self, number: int, grad: torch.Tensor, kept: _Kept) -> None:
        """Layer ``number`` back: changes the residual stream's gradient [N, H], float32, in place."""
        stack, layer = self.stack, self.stack.layers[number]
        dtype = kept.queries.dtype
        # 1. SwiGLU: with s = silu(gate), d(s · up) = (dh · up, dh · s).
        given = grad.to(dtype, copy=True)
        gate, up = kept.gate_up.chunk(2, dim=1)
        through = torch.mm(given, layer.down)
        grad_gate_up = torch.empty_like(kept.gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=1)
        torch.mul(through, kept.gated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(through.mul_(up), gate, grad_input=grad_gate)
        hidden = torch.mul(kept.gated, up, out=through)
        down = (given, hidden)
        states2 = kept.normed2 * layer.norm2
        grad_norm2 = _rms_norm_backward(
            grad, torch.mm(grad_gate_up, _given(stack.gate_up[number])).float(), kept.normed2, kept.rstd2, layer.norm2
        )
        # 2. Attention and rotary embeddings.
        given = grad.to(dtype, copy=True)
        grad_qkv = self._attention_backward(number, torch.mm(given, layer.output), kept)
        states1 = kept.normed1 * layer.norm1
        grad_norm1 = _rms_norm_backward(
            grad, torch.mm(grad_qkv, _given(stack.qkv[number])).float(), kept.normed1, kept.rstd1, layer.norm1
        )
        # 3. Gradients of the weights, added to those of the shares behind: always in the same order.
        vectors = [grad_norm1, grad_norm2]
        if layer.bias:
            vectors.append(grad_qkv.sum(0, dtype=torch.float32))
        products = [(grad_qkv, states1), (given, kept.attended), (grad_gate_up, states2), down]
        if self.number == self.shares - 1:
            matrices = [torch.mm(left.t(), right) for left, right in products]
        else:
            stack.milestones.wait(("weights", number, self.number + 1))
            norm1, qkv, bias, output, norm2, gate_up, down_ = stack.joined_grads[number]
            matrices = [qkv, output, gate_up, down_]
            for (left, right), whole in zip(products, matrices, strict=True):
                whole.addmm_(left.t(), right)
            for vector, whole in zip(vectors, (norm1, norm2, bias), strict=False):
                vector += whole
        if self.number == 0:
            vectors = [vector.to(dtype) for vector in vectors]
        qkv, output, gate_up, down_ = matrices
        bias = vectors[2] if layer.bias else qkv.new_empty(0)
        stack.joined_grads[number] = [vectors[0], qkv, bias, output, vectors[1], gate_up, down_]
        stack.milestones.reach(("weights", number, self.number))

    def _attention_backward(self, number: int, grad: torch.Tensor, kept: _Kept) -> torch.Tensor:
        """From the gradient of the attention's output [N, G·R·D] to that of queries, keys and values [N, (G·R + 2G)·D].

        With P the probabilities: dV = Pᵀ dO, dS = P (dO Vᵀ − Σ P dO Vᵀ), dQ = dS K, dK = dSᵀ Q.
        """
        stack, layer = self.stack, self.stack.layers[number]
        count, groups, repeats, width = self.end - self.begin, layer.groups, layer.repeats, layer.width
        heads = groups * repeats
        keys, values = stack.keys[number], stack.values[number]
        grads = grad.view(count, groups, repeats, width).transpose(0, 1).contiguous()
        grad_queries = torch.empty_like(kept.queries)
        # Sums over blocks are float32.
        shape = (groups, self.end - self.first_key, width)
        grad_keys, grad_values = torch.zeros(shape), torch.zeros(shape)
        for (a, b, first), chances in zip(self.blocks, kept.probabilities, strict=True):
            rows, columns = slice(a - self.begin, b - self.begin), slice(first - self.first_key, b - self.first_key)
            flat = (groups, (b - a) * repeats, width)
            given = grads[:, rows].view(flat)
            grad_values[:, columns] += torch.bmm(chances.transpose(1, 2), given)
            scores = torch.bmm(given, values[:, first:b].transpose(1, 2))
            scores = torch._softmax_backward_data(scores, chances, -1, scores.dtype)
            grad_queries[:, rows] = torch.bmm(scores, keys[:, first:b]).view(groups, b - a, repeats, width)
            grad_keys[:, columns] += torch.bmm(scores.transpose(1, 2), kept.queries[:, rows].view(flat))
        # Keys of the shares before get theirs handed over, those behind hand over to this one.
        own = self.begin - self.first_key
        if own:
            stack.handed[self.number, number] = (self.first_key, grad_keys[:, :own], grad_values[:, :own])
        stack.milestones.reach(("handed", number, self.number))
        grad_keys, grad_values = grad_keys[:, own:], grad_values[:, own:]
        for share in range(self.number + 1, self.shares):
            if stack.line.first_key(share) < self.end:
                stack.milestones.wait(("handed", number, share))
                first, more_keys, more_values = stack.handed[share, number]
                low, high = max(first, self.begin), self.end
                grad_keys[:, low - self.begin :] += more_keys[:, low - first : high - first]
                grad_values[:, low - self.begin :] += more_values[:, low - first : high - first]
        turned = torch.empty(count, heads + groups, width, dtype=grad.dtype)
        torch.mul(grad_queries.transpose(0, 1), layer.scale, out=turned[:, :heads].view(count, groups, repeats, width))
        turned[:, heads:] = grad_keys.transpose(0, 1)
        result = torch.empty(count, heads + 2 * groups, width, dtype=grad.dtype)
        _rotate(turned, self.cos, -self.sin, result[:, : heads + groups])
        result[:, heads + groups :] = grad_values.transpose(0, 1)
        return result.view(count, -1)

    def _embedding(self, grad: torch.Tensor, grad_norm: torch.Tensor) -> None:
        """Add the gradients of the embedding and of the final norm to those of the shares behind."""
        stack = self.stack
        if self.number == self.shares - 1:
            stack.grad_embedding = torch.zeros(stack.embedding.shape)
            stack.grad_norm = torch.zeros_like(grad_norm)
        else:
            stack.milestones.wait(("embedding", self.number + 1))
        assert stack.grad_embedding is not None
        assert stack.grad_norm is not None
        stack.grad_embedding.index_add_(0, stack.line.ids[self.begin : self.end], grad)
        stack.grad_norm += grad_norm
        stack.milestones.reach(("embedding", self.number))


def _given(whole: torch.Tensor | None) -> torch.Tensor:
    assert whole is not None
    return whole


def _rms_norm(
    stream: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normed states [N, H], what each token was multiplied by [N, 1] float32, and the states times the weight."""
    exact = stream.float()
    norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
    rstd = norm.square_().div_(stream.shape[-1]).add_(eps).rsqrt_()
    normed = exact.mul(rstd).to(stream.dtype)
    return normed, rstd, normed * weight


def _rms_norm_backward(
    grad: torch.Tensor, given: torch.Tensor, normed: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Add the gradient of a norm's input to ``grad``; returns that of the weight, [H] float32.

    With n the normed states: dn = dy · w, dx = rstd · (dn − n · mean(dn · n)), dw = Σ dy · n.

    Args:
        grad: Of the residual stream, [N, H] float32, changed in place.
        given: Of the norm's output, [N, H] float32, overwritten.
        normed: [N, H].
        rstd: [N, 1].
        weight: [H].
    """
    exact, scale = normed.float(), weight.float()
    product = given * exact
    grad_weight = product.sum(0)
    mean = torch.mv(product, scale).div_(-normed.shape[-1]).unsqueeze(1)
    given.mul_(scale).addcmul_(exact, mean)
    grad.addcmul_(given, rstd)
    return grad_weight


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> None:
    """Rotary embedding of [N, heads, D]: (x, y) becomes (x cos − y sin, y cos + x sin), x and y the halves of D."""
    half = cos.shape[-1]
    x, y = heads[..., :half], heads[..., half:]
    torch.mul(x, cos, out=out[..., :half]).addcmul_(y, sin, value=-1)
    torch.mul(y, cos, out=out[..., half:]).addcmul_(x, sin)


@torch.no_grad()
def hidden_states(
    model: CausalModel, layers: Sequence[Layer], ids: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Final, normed hidden states [B, L, H] of packed sequences, without gradients.

    Args:
        model: The model that ``layers`` are of.
        layers: Of :func:`layers_of`.
        ids: Token ids, [B, L].
        positions: Position of each token inside its document, [B, L].
    """
    line = line_of(ids, positions, torch.arange(ids.numel()))
    parts: list[torch.Tensor | None] = [None] * (len(line.cuts) - 1)

    def keep(share: int, hidden: torch.Tensor, _: slice) -> None:
        parts[share] = hidden

    Stack(model.base_model, layers, line, backward=False).run(keep)
    return torch.cat([part for part in parts if part is not None]).view(*ids.shape, -1)
