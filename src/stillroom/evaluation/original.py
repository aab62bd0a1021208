"""How far quantized teachers are from the models that they were made from: KL(original ‖ teacher) on validation text.

One model is in memory at a time. Of the original its hidden states on a sample of rows, and its output layer, are kept while
the teacher runs.

Legend: N positions of a row that have a target, H hidden size, V ids of the vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillroom.core.memory import release_memory
from stillroom.corpus.build import has_chats
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.evaluation.bench import Bench
from stillroom.evaluation.heldout import HeldOut
from stillroom.evaluation.intervals import ratio
from stillroom.models.forward import Head, hidden_states, output_head
from stillroom.models.load import teacher_identity
from stillroom.recipe.routes import OWN
from stillroom.recipe.teacher import Teacher as TeacherConfig
from stillroom.runs.run import Run
from stillroom.teachers.original import original_tokenizers
from stillroom.teachers.registry import open_teacher
from stillroom.teachers.teacher import weights_of
from stillroom.teachers.tokenizers import differences

if TYPE_CHECKING:
    from stillroom.models.load import LoadedTeacher
    from stillroom.models.types import CausalModel

TOKENS = 8192
"""Tokens of validation text that both models read, at most (one row where a row is longer)."""
CHUNK = 64
"""Positions whose distributions over the vocabulary exist at the same time."""
MEASURE = "original"


def kl_to_originals(run: Run, bench: Bench) -> dict[str, dict[str, Any]]:
    """KL(original ‖ teacher) of every teacher whose recipe names its original, by the teacher's name.

    Returns:
        Of each ``value`` in nats per token, ``interval`` over documents (None of fewer than two), ``documents``,
        ``effective_documents``, ``enough``, ``tokens`` that were compared, and ``name``, ``digest`` and ``licence`` of the
        ``original``; ``tokenizers_differ`` says in words what its tokenizer does otherwise, if anything. What was measured
        before for the same models and text is read. A run without validation text has none.
    """
    found = {}
    for name, original in run.recipe.originals.items():
        teacher = run.recipe.every_teacher[name]
        inputs = {
            "text": bench.text_digest,
            "confidence": bench.config.confidence,
            **{
                key: teacher_identity(config, run.known.digest)["teacher"]
                for key, config in (("teacher", teacher), ("original", original))
            },
        }
        result = bench.part(MEASURE, name, inputs, lambda name=name: _measured(run, bench, name))  # type: ignore[misc]
        if result is not None:
            found[name] = result
    return found


@torch.inference_mode()
def _measured(run: Run, bench: Bench, name: str) -> dict[str, Any] | None:
    validation = HeldOut(run.stage("corpus").path / "validation.safetensors")
    rows = sample(validation)
    if not any(bool((row.targets != IGNORED).any()) for row in rows):
        bench.progress.say(f"  {name}: there is no validation text to compare it with its original on")
        return None
    own = original_tokenizers(run.recipe, name)
    unlike = differences(run.recipe, own, chats=has_chats(run.stage("corpus").path))
    with bench.progress.task("original", total=2 * sum(row.tokens for row in rows)) as task:
        bench.progress.say_each(unlike)
        bench.progress.say(f"  loading the original of {name}")
        first = _open(run.recipe.originals[name], bench)
        head, kept = _apart(output_head(first.model)), []
        for row in rows:
            kept.append(_states(first.model, row).cpu())
            task.advance(row.tokens)
        original = {"name": first.name, "digest": first.digest, "licence": first.licence}
        del first
        release_memory()
        model = bench.load(name).model if name == OWN else _open(run.recipe.every_teacher[name], bench).model
        sums = np.zeros((validation.documents, 2))
        for row, states in zip(rows, kept, strict=True):
            kl = _divergence(head, states, output_head(model), _states(model, row))
            np.add.at(sums, row.documents[0][_where(row)].numpy(), np.stack([kl, np.ones_like(kl)], axis=1))
            task.advance(row.tokens)
    estimate = ratio(sums[:, 0], sums[:, 1], bench.config.confidence)
    interval = estimate.interval
    return {
        "value": estimate.value,
        # No KL is below zero.
        "interval": None if interval is None else [min(estimate.value, max(0.0, interval[0])), interval[1]],
        "documents": estimate.documents,
        "effective_documents": round(estimate.effective, 2),
        "enough": estimate.enough,
        "tokens": int(sums[:, 1].sum()),
        "original": original,
        **({"tokenizers_differ": unlike} if unlike else {}),
    }


def sample(text: HeldOut) -> list[Sequences]:
    """Rows of a text, evenly over it, with about ``TOKENS`` tokens at most."""
    count = min(len(text), max(1, TOKENS // max(1, text.length)))
    return [text.row(number * len(text) // count) for number in range(count)]


def _open(config: TeacherConfig, bench: Bench) -> LoadedTeacher:
    return weights_of(open_teacher(config, bench.device, torch.float32), "`original`")


def _where(row: Sequences) -> torch.Tensor:
    """The N positions with a target."""
    return (row.targets[0] != IGNORED).nonzero().squeeze(1)


def _states(model: CausalModel, row: Sequences) -> torch.Tensor:
    """Hidden states [N, H] of a row."""
    hidden = hidden_states(model, row.ids, row.positions)[0]
    return hidden[_where(row).to(hidden.device)]


def _apart(head: Head) -> Head:
    """An output layer without its model, on the CPU."""
    bias = None if head.bias is None else head.bias.detach().cpu().clone()
    return replace(head, matrix=head.matrix.detach().cpu().clone(), bias=bias)


def _divergence(original: Head, states: torch.Tensor, teacher: Head, own: torch.Tensor) -> np.ndarray:
    """KL(original ‖ teacher) at each position, nats, [N]."""
    device = own.device
    bias = None if original.bias is None else original.bias.to(device)
    original = replace(original, matrix=original.matrix.to(device), bias=bias)
    found = []
    for theirs, mine in zip(torch.split(states, CHUNK), torch.split(own, CHUNK), strict=True):
        said, heard = _logprobs(original, theirs.to(device)), _logprobs(teacher, mine)
        found.append((said.exp() * (said - heard)).sum(1).cpu().double())
    return torch.cat(found).numpy()


def _logprobs(head: Head, hidden: torch.Tensor) -> torch.Tensor:
    """Log-probabilities [n, V] of hidden states [n, H], float32."""
    return head.finish(torch.nn.functional.linear(hidden, head.matrix, head.bias).float()).log_softmax(1)
