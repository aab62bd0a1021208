"""Proves, before a model is used, that it is run rightly: on random documents, in about six hundred tokens.

What is proved, each against the model's own forward pass over single documents:

1. logits are finite, and hidden states times the output matrix, with the config's factor and cap, give them;
2. a later token changes no earlier logit;
3. documents packed into one sequence give what they give one by one, with the model's own attention and, where they are to
   be used, with that of :mod:`stillroom.models.attention` and with the layers of :mod:`stillroom.models.stack`; where they do
   not, one document per row does.

What an architecture does is the same for all models of one config, so that the way is found once for each in a process.

Legend: L tokens, V vocabulary, C some ids of the vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core.errors import UnsupportedModel, first_line, translate
from stillroom.models import stack
from stillroom.models.at_hand import OWN_HOOKS
from stillroom.models.attention import applies
from stillroom.models.documents import applies as applies_documents
from stillroom.models.documents import documents_of, states_in_documents
from stillroom.models.passes import WAY, Head, Way, body, head_of, states, states_by_row, states_in_blocks

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel

ROWS = ((40, 57, 31), (70, 58))
"""Lengths of the documents of two sequences; together as long as attention in blocks needs."""
SAMPLED = 1024
"""Ids whose logits are compared."""
SCALES = ("logit_scale", "lm_head_multiplier", "output_multiplier_scale", "logits_scale")
"""Config keys of a factor on the logits."""
DIVISORS = ("logits_scaling", "mup_width_multiplier")
"""Config keys of a number that divides the logits."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Config keys of a cap on the logits."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Where a module keeps what is called before and after its forward pass."""
_SAME = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Difference of logits, in their standard deviations, up to which they are the same; wrong ones differ by 0.06 to 90."""
_SAME_COARSE = 6e-2
"""The same in 16 bits, as a root mean square over positions: right ones differ by up to 0.03."""
_OTHER_CODE = 4
"""In 16 bits, code that is not the model's own rounds elsewhere: it may differ by so many times as much. A document that sees
another differs by more, and so does wrong code."""


@dataclass(frozen=True)
class Proof:
    """What was found out about a model.

    Attributes:
        way: How it is run.
        errors: Largest difference of each comparison, in standard deviations of the logits.
    """

    way: Way
    errors: dict[str, float]


def prove(model: CausalModel, *, again: bool = False) -> Proof:
    """Find out how a model is run, and attach it to the model.

    Args:
        model: A Hugging Face causal language model; nothing of it changes.
        again: Do not take the word of an earlier proof of the same config.

    Raises:
        UnsupportedModel: It is not causal, it gives no logits, or its documents cannot be kept apart, by name.
    """
    key = _key(model)
    proof = None if again else _PROVED.get(key)
    if proof is None:
        with _quiet(model):
            proof, telling = _prove(model)
        if telling:
            _PROVED[key] = proof
    setattr(model, WAY, proof.way)
    return proof


_PROVED: dict[tuple[str, ...], Proof] = {}


def _key(model: CausalModel) -> tuple[str, ...]:
    parameter = next(model.parameters())
    return (
        type(model).__qualname__,
        str(model.config.to_json_string(use_diff=False)),
        str(getattr(model.config, "_attn_implementation", None)),
        str(parameter.dtype),
        parameter.device.type,
    )


@contextlib.contextmanager
def _quiet(model: CausalModel) -> Iterator[None]:
    """Evaluation mode without gradients and autocast; afterwards everything is as it was.

    Code that hooks into a module, or has put a function in place of its forward pass, gets none of the proof's documents. What
    accelerate or :mod:`stillroom.models.at_hand` put there moves weights, and stays.
    """
    training = [module for module in model.modules() if module.training]
    modules = [module for module in model.modules() if not hasattr(module, "_hf_hook")]
    stand_ins = [(module, vars(module).pop("forward")) for module in modules if "forward" in vars(module)]
    hooks = [(module, name, vars(module)[name]) for module in modules for name in HOOKS if vars(module).get(name)]
    for module, name, held in hooks:
        vars(module)[name] = OrderedDict((key, hook) for key, hook in held.items() if isinstance(hook, OWN_HOOKS))
    model.eval()
    device = next(model.parameters()).device.type
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module in training:
            module.training = True
        for module, name, held in hooks:
            vars(module)[name] = held
        for module, forward in stand_ins:
            module.forward = forward


@dataclass(frozen=True)
class _Judge:
    """Compares logits of some ids.

    Attributes:
        head: The output layer.
        columns: Ids that are compared, [C].
        sigma: Standard deviation of the logits.
        same: Difference up to which they are the same.
        routed: Whether experts are chosen: then rounding can change the choice at some positions.
    """

    head: Head
    columns: torch.Tensor
    sigma: float
    same: float
    routed: bool

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [L, C] of hidden states [L, H]."""
        bias = None if self.head.bias is None else self.head.bias[self.columns]
        return self.head.finish(torch.nn.functional.linear(hidden, self.head.matrix[self.columns], bias).float())

    def error(self, found: torch.Tensor, expected: torch.Tensor, *, single: bool = False) -> float:
        """Largest difference of logits by position, in standard deviations: :func:`position_error`."""
        mine, theirs = self.logits(found), self.logits(expected)
        coarse = self.same == _SAME_COARSE
        return position_error(mine, theirs, self.sigma, routed=self.routed, coarse=coarse, single=single)

    def holds(self, error: float, *, own_code: bool = True) -> bool:
        """Whether a difference is one of rounding; not a number is not."""
        return error <= self.same * (1 if own_code or self.same != _SAME_COARSE else _OTHER_CODE)


def position_error(
    found: torch.Tensor,
    expected: torch.Tensor,
    sigma: float,
    *,
    routed: bool,
    coarse: bool = False,
    single: bool = False,
) -> float:
    """Difference of logits [L, C] by position, in units of ``sigma``: the largest, or with ``routed`` (experts are chosen) the
    one that nine tenths of the positions keep, at the beginning and as a whole.

    With ``coarse`` (16 bits) it is the root mean square over positions, of the first eight or of all, whichever is more,
    without the worst eighth of them: after 27 layers rounding may change everything at one position of random text, on one CPU
    and not on another, and documents that see others change at more than single positions. With ``single`` those count too.
    """
    difference = (found.float() - expected.float()).square().mean(-1).sqrt() / sigma
    if not bool(torch.isfinite(difference).all()):
        return float("inf")
    if coarse and not routed:
        share = 1 if single else 7 / 8
        kept = (part.sort().values[: math.ceil(share * len(part))] for part in (difference[:8], difference))
        return max(float(part.square().mean().sqrt()) for part in kept)
    if not routed:
        return float(difference.max())
    return max(float(difference.quantile(0.9)), float(difference[:6].median()))


def _prove(model: CausalModel) -> tuple[Proof, bool]:
    """The proof, and whether the weights could have told a wrong way from a right one."""
    name = model.config.model_type
    documents, ids, positions = _material(model)
    try:
        full = [model(input_ids=document[None], use_cache=False).logits[0] for document in documents[:2]]
    except Exception as error:
        raise translate(error) or _refused(model, f"its forward pass fails: {first_line(error)}") from None
    if not all(bool(torch.isfinite(logits).all()) for logits in full):
        raise UnsupportedModel(
            f"The model (family `{name}`) gives logits that are not finite numbers.",
            "Get its files again, or run it in another dtype: `dtype: float32`.",
        )
    sigma = float(torch.cat(full).float().std())
    dtype = next(model.parameters()).dtype
    same = _SAME.get(dtype, _SAME_COARSE)
    if sigma == 0.0:  # All logits are equal: nothing can be told from them.
        return Proof(Way(packed=False, blocks=False, reason="its logits are constant"), {}), False
    errors: dict[str, float] = {}
    way = _head(model, documents[:2], full, sigma, same, errors)
    head = head_of(model, way)
    rows = head.matrix.shape[0]
    columns = torch.randperm(rows, generator=torch.Generator().manual_seed(1))[:SAMPLED].to(head.matrix.device)
    judge = _Judge(head, columns, sigma, same, _routed(model))
    single = [states(model, way, document[None], None)[0] for document in documents]

    changed, half = documents[1].clone(), len(documents[1]) // 2
    changed[half:] = (changed[half:] + 7) % _vocabulary(model)
    later = states(model, way, changed[None], None)[0]
    errors["causal"] = judge.error(later[:half], single[1][:half], single=True)
    # The same numbers are added in the same order, so that what rounding changes is far less than between shapes.
    if not errors["causal"] <= (same / 20 if dtype in _SAME else same):
        raise _refused(model, "it is not causal: later tokens change what it says of earlier ones")

    telling = _telling(model, way, judge, documents[1], single[1])
    errors["rows"] = _worst(judge, states_by_row(model, way, ids, positions), single)
    if not judge.holds(errors["rows"]):
        raise _refused(model, "documents of different lengths do not give in one batch what they give one by one")
    way = _packing(model, way, judge, ids, positions, single, errors)
    if way.packed and not telling:
        way = replace(
            way, packed=False, blocks=False, reason="its context hardly matters, so that packing cannot be proved"
        )
    return Proof(way, errors), telling


def _refused(model: CausalModel, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"A model of the family `{model.config.model_type}` cannot be used here: {why}.",
        "Use a teacher of another family; docs/import.md says which can be.",
    )


def _material(model: CausalModel) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Documents, [L] each; the sequences that they are packed into, [2, L]; and the positions there, [2, L]."""
    device = next(model.parameters()).device
    longest = max(itertools.chain(*ROWS))
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    share = min(1.0, room / longest) if isinstance(room, int) and room > 0 else 1.0
    lengths = [[max(8, int(length * share)) for length in row] for row in ROWS]
    whole = min(sum(row) for row in lengths)
    for row in lengths:
        row[-1] -= sum(row) - whole
    generator = torch.Generator().manual_seed(0)
    rows = [
        [torch.randint(0, _vocabulary(model), (length,), generator=generator).to(device) for length in row]
        for row in lengths
    ]
    ids = torch.stack([torch.cat(row) for row in rows])
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths]).to(device)
    return [document for row in rows for document in row], ids, positions


def _vocabulary(model: CausalModel) -> int:
    """Ids that may go in."""
    rows = [model.get_input_embeddings().weight.shape[0]]
    layer = model.get_output_embeddings()
    rows += [layer.weight.shape[0]] if layer is not None else []
    per_layer = getattr(model.config.get_text_config(), "vocab_size_per_layer_input", None)
    return min([*rows, per_layer] if isinstance(per_layer, int) else rows)


def _routed(model: CausalModel) -> bool:
    """Whether some layers choose among experts."""
    return any("expert" in name.lower() or "router" in name.lower() for name, _ in model.named_modules())


def _head(
    model: CausalModel,
    documents: list[torch.Tensor],
    full: list[torch.Tensor],
    sigma: float,
    same: float,
    errors: dict[str, float],
) -> Way:
    """Where hidden states are taken, and what the family does to the products with the output matrix."""
    layer: Any = model.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None or layer.weight.dim() != 2:
        raise _refused(model, "it has no output matrix")
    if layer.weight.shape[0] != full[0].shape[-1]:
        raise _refused(
            model, f"its output matrix has {layer.weight.shape[0]:,} rows, and its logits are {full[0].shape[-1]:,}"
        )
    failure = ""
    for at_output_layer in (False, True):
        start = Way(packed=False, blocks=False, at_output_layer=at_output_layer)
        try:
            products = [
                torch.nn.functional.linear(
                    states(model, start, document[None], None)[0], layer.weight, layer.bias
                ).float()
                for document in documents
            ]
        except Exception as error:
            failure = first_line(error)
            continue
        for scale, softcap in _finishes(model):
            head = Head(layer.weight, layer.bias, scale, softcap)
            worst = max(
                position_error(head.finish(given), expected, sigma, routed=False)
                for given, expected in zip(products, full, strict=True)
            )
            errors["head"] = min(worst, errors.get("head", worst))
            if worst <= same:
                return replace(start, scale=scale, softcap=softcap)
    why = (
        failure
        or f"hidden states times its output matrix differ from its logits by {errors['head']:.2g} of their spread"
    )
    raise _refused(model, why)


def _finishes(model: CausalModel) -> list[tuple[float, float | None]]:
    """Factors and caps that the config names, the plain one last where there are any."""
    config = model.config.get_text_config()

    def numbers(keys: tuple[str, ...]) -> list[float]:
        found = [getattr(config, key, None) for key in keys]
        return [float(value) for value in found if isinstance(value, int | float) and value]

    scales = [*numbers(SCALES), *(1.0 / value for value in numbers(DIVISORS)), 1.0]
    caps = [*numbers(CAPS), None]
    return list(itertools.product(dict.fromkeys(scales), dict.fromkeys(caps)))


def _telling(model: CausalModel, way: Way, judge: _Judge, document: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether earlier tokens change later logits by far more than rounding does."""
    changed = document.clone()
    changed[: len(changed) // 2] = (changed[: len(changed) // 2] + 11) % _vocabulary(model)
    other = states(model, way, changed[None], None)[0]
    return judge.error(other[-8:], expected[-8:]) > 3 * judge.same


def _worst(judge: _Judge, found: torch.Tensor, single: list[torch.Tensor]) -> float:
    """Largest error of hidden states of sequences [2, L, H] against those of their documents."""
    flat, begin, errors = found.flatten(0, 1), 0, []
    for expected in single:
        errors.append(judge.error(flat[begin : begin + len(expected)], expected))
        begin += len(expected)
    return max(errors)


def _packing(
    model: CausalModel,
    way: Way,
    judge: _Judge,
    ids: torch.Tensor,
    positions: torch.Tensor,
    single: list[torch.Tensor],
    errors: dict[str, float],
) -> Way:
    """Whether documents may go through together, by the model's own attention and by ours."""
    if not _takes_positions(model):
        return replace(way, reason="it takes no positions")
    try:
        errors["packed"] = _worst(judge, states(model, way, ids, positions), single)
    except Exception as error:
        return replace(way, reason=f"it refuses packed documents ({first_line(error)})")
    if not judge.holds(errors["packed"]):
        return replace(way, reason="a packed document sees the one before it")
    way = replace(way, packed=True)
    if way.at_output_layer:
        return way
    layers = stack.layers_of(model) if ids.device.type == "cpu" else None
    if layers is not None:
        errors["by_hand"] = _worst(judge, stack.hidden_states(model, layers, ids, positions), single)
        way = replace(way, by_hand=judge.holds(errors["by_hand"], own_code=False))
    if applies_documents(model, ids):
        try:
            found = states_in_documents(
                model, body(model), ids, positions, documents_of(positions.cpu()).to(ids.device)
            )
            errors["documents"] = _worst(judge, found, single)
        except Exception:
            return way
        way = replace(way, documents=judge.holds(errors["documents"], own_code=False))
    if not applies(model, ids):
        return way
    try:
        errors["blocks"] = _worst(judge, states_in_blocks(model, ids, positions), single)
    except Exception:
        return way
    return replace(way, blocks=judge.holds(errors["blocks"], own_code=False))


@functools.cache
def _parameters(function: Any) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _takes_positions(model: CausalModel) -> bool:
    return "position_ids" in _parameters(type(model).forward)
