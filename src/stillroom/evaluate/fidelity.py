"""How closely students follow their teacher on held-out text, exactly: dense teacher, no sampling.

The teacher runs once over every sequence; all students are compared with it in the same pass. One sequence and one chunk
of logits are in memory at a time. Knows nothing of files.

Legend: P positions where teacher and student predict the same thing, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.evaluate.bench import Bench
from stillroom.evaluate.heldout import HeldOut
from stillroom.evaluate.tally import GROUPS, MEASURES, Drawing, Places, Tally, calibration, headline, sliced
from stillroom.evaluate.tokens import CLASSES, position_edges, position_labels, token_classes
from stillroom.evaluate.worst import Worst
from stillroom.progress import Task
from stillroom.student.vocabulary import VocabularyMap
from stillroom.teacher.forward import hidden_states, logits_from_hidden
from stillroom.train.batches import BatchSource

CHUNK = 256
"""Positions whose distributions over the vocabulary exist at the same time."""


@dataclass
class Contender:
    """A model to compare with the teacher, how its ids relate to the teacher's, and its sums."""

    name: str
    model: Any
    vocabulary: VocabularyMap
    tally: Tally


def measure_fidelity(bench: Bench) -> dict[str, Any]:
    """The measure `fidelity`: headline numbers, by source, position and token class, calibration, the worst passages."""
    teacher = bench.load("teacher")
    heldout = bench.heldout
    groups = min(GROUPS, max(1, heldout.documents))
    axes = {
        "all": 1,
        "source": len(bench.sources),
        "position": len(position_edges(heldout.length)),
        "class": len(CLASSES),
    }
    own = Tally(axes, groups)
    contenders = []
    for name in bench.names[1:]:
        loaded = bench.load(name)
        contenders.append(Contender(name, loaded.model, loaded.vocabulary, Tally(axes, groups)))
    worst = Worst(teacher.tokenizer, bench.load("student").tokenizer, bench.sources)
    classes = token_classes(teacher.tokenizer, teacher.vocabulary.teacher_size)
    with bench.progress.task("fidelity", total=len(heldout) * heldout.length) as task:
        documents = compare(teacher.model, own, contenders, heldout, classes, task, worst)
    tallies = {"teacher": own} | {contender.name: contender.tally for contender in contenders}
    return summarize(tallies, documents, bench, position_labels(heldout.length)) | {"worst": worst.found()}


def summarize(tallies: dict[str, Tally], documents: int, bench: Bench, positions: list[str]) -> dict[str, Any]:
    """Values with intervals, slices, calibration and paired comparisons with the student."""
    config = bench.config
    drawing = Drawing(config.bootstrap_samples, config.confidence, bench.seed)
    labels = {"source": bench.sources, "position": positions, "class": list(CLASSES)}
    compared = {}
    for name in ("baseline", "shrunk", "repaired"):
        if name in tallies:
            compared[f"student_minus_{name}"] = paired(tallies["student"], tallies[name], drawing)
    groups = tallies["teacher"].groups
    models = {name: headline(tally, drawing) for name, tally in tallies.items()}
    reliability = {name: calibration(tally, drawing) for name, tally in tallies.items()}
    slices = {
        axis: {name: sliced(tally, axis, labels[axis], drawing) for name, tally in tallies.items()} for axis in labels
    }
    bounds = {name: [models["student"][name], *models["student"][f"{name}_interval"]] for name in MEASURES}
    bounds["ece"] = [reliability["student"]["ece"], *reliability["student"]["ece_interval"]]
    for axis, by_model in slices.items():
        for entry in by_model["student"]:
            for name in MEASURES:
                bounds[f"{axis}.{entry['label']}.{name}"] = [entry[name], *entry[f"{name}_interval"]]
    return {
        "models": models,
        "compared": compared,
        "calibration": reliability,
        "slices": slices,
        "documents": documents,
        "positions": int(tallies["student"].of("compared").sum()),
        "tokens": {name: int(tally.of("tokens").sum()) for name, tally in tallies.items()},
        "groups": groups,
        "interval": _interval(drawing, documents, groups),
        "sums": {name: tally.as_dict() for name, tally in tallies.items()},
        "text": bench.text_digest,
        "bounds": bounds,
    }


def paired(first: Tally, second: Tally, drawing: Drawing) -> dict[str, Any]:
    """First minus second on the same documents, for every measure whose weights they share."""
    result: dict[str, Any] = {}
    for name, (value, weight, factor) in MEASURES.items():
        if np.array_equal(first.of(weight), second.of(weight)):
            estimate = drawing.estimate((first.of(value) - second.of(value)) * factor, first.of(weight))
            result[name] = estimate.value
            result[f"{name}_interval"] = [estimate.low, estimate.high]
    return result


@torch.inference_mode()
def compare(
    teacher: Any,
    own: Tally,
    contenders: list[Contender],
    heldout: HeldOut,
    classes: np.ndarray,
    task: Task,
    worst: Worst | None = None,
) -> int:
    """Compare models with their teacher, adding to their tallies.

    Args:
        teacher: The teacher, float32.
        own: Takes the teacher's sums.
        contenders: The students.
        heldout: Text in the teacher's ids.
        classes: The class of each teacher's id, [V].
        task: Takes progress in tokens.
        worst: Watches the contender called ``student``.

    Returns:
        Documents that had a position to compare.
    """
    seen: set[int] = set()
    device = next(teacher.parameters()).device
    for index in range(len(heldout)):
        row = heldout.row(index)
        where = (row.targets[0] != IGNORED).nonzero().squeeze(1)
        places = _places(row, where.numpy(), heldout, classes, own)
        seen.update(row.documents[0][where].tolist())
        targets = row.targets[0][where].to(device)
        hidden = hidden_states(teacher, row.ids.to(device), row.positions.to(device))[0, where.to(device)]
        students = [_Student(contender, row, device) for contender in contenders]
        for start in range(0, len(where), CHUNK):
            part = slice(start, min(start + CHUNK, len(where)))
            logprobs = torch.log_softmax(logits_from_hidden(teacher, hidden[part]), dim=1)
            here = {axis: bins[part] for axis, bins in places.items()}
            nats = -logprobs.gather(1, targets[part, None]).squeeze(1)
            # The teacher against itself: said by the same sums, so that a slip in them would show.
            zero = (logprobs.exp() * (logprobs - logprobs)).sum(1)
            own.add(here, nats=_float(nats), kl=_float(zero), top1=1.0, top5=1.0, compared=1.0, tokens=1.0)
            _reliability(own, here, logprobs, targets[part])
            for student in students:
                student.compare(logprobs, part, here, worst)
        text_bytes = row.target_bytes[0][where].numpy()
        own.add(places, text_bytes=text_bytes)
        for student in students:
            student.contender.tally.add(places, text_bytes=text_bytes)
            student.text(row, heldout, classes)
        if worst is not None:
            worst.close(row, where)
        task.advance(heldout.length)
    return len(seen)


class _Student:
    """One contender's pass over one sequence."""

    def __init__(self, contender: Contender, row: Sequences, device: torch.device) -> None:
        self.contender = contender
        source = BatchSource(row, contender.vocabulary, None)
        self.batch = source.batch([0]).to(device)
        self.states = hidden_states(contender.model, self.batch.ids, self.batch.positions)[0]
        self.speaking = source.speaking(0).to(device)
        self.origin = source.origin(0)

    def compare(self, teacher: torch.Tensor, part: slice, here: Places, worst: Worst | None) -> None:
        """KL and agreement at the positions of one chunk; ``teacher`` holds log-probabilities [P, V] in its ids."""
        vocabulary = self.contender.vocabulary
        used = vocabulary.student_used
        student = self._logprobs(self.states[self.speaking[part]])
        projected = vocabulary.project_dense(teacher)[:, :used]
        probabilities = projected.exp()
        divergence = torch.where(probabilities > 0, probabilities * (projected - student), 0.0).sum(1)
        said = projected.argmax(1)
        best = student.topk(min(5, used), dim=1).indices
        own = student.argmax(1)
        self.contender.tally.add(
            here,
            kl=_float(divergence),
            top1=_float(own == said),
            top5=_float((best == said[:, None]).any(1)),
            compared=1.0,
        )
        if worst is not None and self.contender.name == "student":
            worst.add(divergence.cpu(), teacher.argmax(1).cpu(), own.cpu())

    def text(self, row: Sequences, heldout: HeldOut, classes: np.ndarray) -> None:
        """Cross-entropy on the text, and calibration, in the student's own tokens."""
        rows = self.batch.rows.cpu()
        # A piece belongs to the place from which its whole token is predicted.
        token = self.origin[rows + 1].numpy()
        keep = (row.segments[0] >= 0).nonzero().squeeze(1).numpy()
        places = _places(row, keep[token] - 1, heldout, classes, self.contender.tally)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, min(start + CHUNK, len(rows)))
            logprobs = self._logprobs(self.states[self.batch.rows[part]])
            targets = self.batch.targets[part]
            here = {axis: bins[part] for axis, bins in places.items()}
            nats = -logprobs.gather(1, targets[:, None]).squeeze(1)
            self.contender.tally.add(here, nats=_float(nats), tokens=1.0)
            _reliability(self.contender.tally, here, logprobs, targets)

    def _logprobs(self, states: torch.Tensor) -> torch.Tensor:
        logits = logits_from_hidden(self.contender.model, states)[:, : self.contender.vocabulary.student_used]
        return torch.log_softmax(logits, dim=1)


def _places(row: Sequences, where: np.ndarray, heldout: HeldOut, classes: np.ndarray, tally: Tally) -> Places:
    """Group and bins of predicting positions; a token's class is that of the text's token which is predicted."""
    documents = row.documents[0].numpy()[where]
    edges = position_edges(heldout.length)
    places: Places = {
        "group": documents % tally.groups,
        "all": np.zeros(len(where), dtype=np.int64),
    }
    if "source" in tally.axes:
        places["source"] = heldout.document_sources.numpy()[documents].astype(np.int64)
        places["position"] = np.searchsorted(edges, row.positions[0].numpy()[where], side="right") - 1
        places["class"] = classes[row.ids[0].numpy()[where + 1]]
    return places


def _reliability(tally: Tally, here: Places, logprobs: torch.Tensor, targets: torch.Tensor) -> None:
    best = logprobs.max(dim=1)
    tally.add_reliability(here["group"], _float(best.values.exp()), _float(best.indices == targets))


def _float(values: torch.Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _interval(drawing: Drawing, documents: int, groups: int) -> str:
    over = "documents" if documents <= groups else f"{groups} groups of documents"
    return f"{drawing.confidence:.0%} bootstrap-t over {over}, {drawing.samples} resamplings"
