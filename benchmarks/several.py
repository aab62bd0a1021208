"""Two teachers, each for its own domain: whether one student of both is as near to each as a student of that one alone.

    .venv/bin/python -m benchmarks.several [--quick] [--json FILE] [--work FOLDER]

Two teachers are made here of SmolLM2-135M-Instruct by cross-entropy, one on Python's language reference, the other on the
standard library's docstrings. The student is half of SmolLM2's layers, pruned and repaired once on both texts, and distilled
three times from recipes: from both teachers, each domain from its own (`teachers`), and from each alone, on the same documents
of that domain for the same epochs. ``reference_ratio`` and ``docstrings_ratio`` are the held-out KL of the student of both
over that of the student of one, on that domain, to that domain's teacher; the mean over seeds, with Student's interval in the
details. The bar is 1.05. Two domains share one student's capacity, and each also teaches it what both have in common: either
may be the larger effect. ``swapped_ratio`` is the held-out KL of the student of both to each domain's other teacher, over that
to its own: near 1, the teachers hardly differ and the figures above say little. ``--quick`` takes a few documents and one
seed. ``--work`` names a folder that keeps teachers, start and every finished seed, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import material, report
from stillroom.core.files import replacing
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.load import load_student, load_teacher, save_model
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.signals.batches import BatchSource
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.local import LocalTeacher
from stillroom.training.schedule import batch_order

DOMAINS = {"reference": "topics", "docstrings": "docstrings"}
LENGTH, LAYERS, BATCH_TOKENS, SEEDS = 512, 15, 1024, (0, 1, 2)
TEACHER_RATE = 1e-4
OWN = {"kind": "own", "decided_by": "the benchmark", "decided_at": "2026-11-27T00:00:00Z"}


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        documents: Of each domain, in the order of ``DOMAINS``.
        steps: Of a teacher's training.
        epochs: Of a student's.
        layers: Of the student.
    """

    documents: tuple[int, int]
    steps: int
    epochs: int
    layers: int = LAYERS


WHOLE = Size((45, 100), 48, 2)
QUICK = Size((10, 16), 2, 1, 4)


def source(domain: str, size: Size) -> dict[str, Any]:
    """The recipe's source of a domain."""
    documents = size.documents[list(DOMAINS).index(domain)]
    return {"kind": "python_docs", "parts": [DOMAINS[domain]], "limit": documents}


def recipe(
    name: str,
    teachers: dict[str, dict[str, Any]],
    routes: dict[str, str],
    student: dict[str, Any],
    size: Size,
    seed: int,
) -> Recipe:
    """A recipe that learns each domain from the teacher that ``routes`` names for it; the first is the recipe's own."""
    first, *others = dict.fromkeys(routes.values())
    sources = [source(domain, size) | ({} if who == first else {"teacher": who}) for domain, who in routes.items()]
    return Recipe.model_validate(
        {
            "name": name,
            "seed": seed,
            "compute": {"device": "cpu", "threads": 1},
            "corpus": {
                "sources": sources,
                "sequence_length": LENGTH,
                "heldout_share": 0.25,
                "heldout_tokens": None,
            },
            "teacher": teachers[first],
            "teachers": {who: teachers[who] for who in others},
            "student": student,
            "distill": {"batch_tokens": BATCH_TOKENS, "learning_rate": 2e-4, "epochs": size.epochs},
            "baseline": False,
            "evaluate": {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 200},
            "terms": {"decisions": [OWN | {"subject": name} for name in ("teacher", "student", *others)]},
        }
    )


def base() -> dict[str, dict[str, Any]]:
    """SmolLM2-135M-Instruct under the name of both domains: what the teachers are made of."""
    return dict.fromkeys(DOMAINS, material.TEACHER.model_dump(mode="json"))


def pruned(size: Size) -> dict[str, Any]:
    """The student's start as a recipe has it: evenly spaced layers, the whole vocabulary, as an existing student needs it."""
    every = list(range(30))
    kept = material.evenly_spaced(len(every), size.layers)
    removed = [layer for layer in every if layer not in kept]
    return {"kind": "shrink", "layers": size.layers, "remove_layers": removed, "vocabulary": {"keep": "all"}}


def start_of(folder: Path, size: Size) -> Path:
    """The student before it is distilled, pruned and repaired on the text of both domains."""
    target = folder / "start"
    if not target.is_dir():
        one = dict.fromkeys(DOMAINS, "reference")
        made = run(recipe("start-run", base(), one, pruned(size), size, 0), folder, quiet=True, until="shrink")
        with replacing(target) as beside:
            shutil.copytree(made.path / "shrink" / "model", beside)
        shutil.rmtree(made.path)
    return target


def train_teacher(text: Sequences, steps: int, folder: Path, seed: int) -> Path:
    """SmolLM2-135M-Instruct, trained on a text by cross-entropy."""
    loaded = material.teacher(torch.float32)
    model = loaded.model.requires_grad_(requires_grad=True).train()
    rows = BATCH_TOKENS // LENGTH
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACHER_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    order = batch_order(len(text), rows, steps, seed)[:steps]
    rounded = material.fastest() == torch.bfloat16
    for step, chosen in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = TEACHER_RATE * min(1.0, (step + 1) / 5, 2 * (1 - step / steps))
        targets = text.targets[chosen]
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            states = hidden_states(model, text.ids[chosen], text.positions[chosen])[targets != IGNORED]
            logits = logits_from_hidden(model, states)
        loss = torch.nn.functional.cross_entropy(logits.float(), targets[targets != IGNORED])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    save_model(material.as_dtype(model.eval(), torch.bfloat16), loaded.tokenizer, folder)
    return folder


def measured(made: Any) -> list[dict[str, Any]]:
    """The student's held-out KL on each source, in nats per token, and of how many documents and positions it is."""
    fidelity = json.loads((made.path / "evaluate" / "evaluation.json").read_text())["measures"]["fidelity"]
    return [
        {"kl": float(entry["kl_to_teacher"]), "documents": entry["documents"], "positions": entry["positions"]}
        for entry in fidelity["slices"]["source"]["student"]
    ]


@torch.inference_mode()
def kl_by_source(made: Any, teacher: Path) -> list[float]:
    """KL(teacher || student of a run) on the held-out text of each of its sources, nats per token."""
    text = Sequences.load(made.path / "corpus" / "heldout.safetensors")
    vocabulary = VocabularyMap.load(made.path / "shrink" / "vocabulary.safetensors")
    student, _ = load_student(made.path / "distill" / "model", torch.float32)
    local = LocalTeacher(load_teacher(HuggingFaceTeacher(name=str(teacher)), "cpu", torch.float32))
    source = BatchSource(text, vocabulary, None)
    sums = torch.zeros(2, len(DOMAINS), dtype=torch.float64)
    for row in range(len(text)):
        batch = source.batch([row])
        states = hidden_states(student.eval(), batch.ids, batch.positions)[0, source.speaking(row)]
        mine = logits_from_hidden(student, states)[:, : vocabulary.student_used].log_softmax(1)
        scores = torch.cat([part for _, parts in local.score(text, [row]) for part in parts]).log_softmax(1)
        theirs = vocabulary.project_dense(scores)[:, : vocabulary.student_used]
        kl = torch.where(theirs.exp() > 0, theirs.exp() * (theirs - mine), 0.0).sum(1).double()
        whose = text.document_sources[text.documents[row][text.targets[row] != IGNORED]].long()
        sums[0].index_add_(0, whose, kl)
        sums[1].index_add_(0, whose, torch.ones_like(kl))
    return [float(value) for value in sums[0] / sums[1]]


def teachers_of(folder: Path, size: Size) -> dict[str, dict[str, Any]]:
    """A teacher for each domain, trained on its text, as a recipe's section; ``folder`` keeps them."""
    for number, domain in enumerate(DOMAINS):
        if (folder / domain).is_dir():
            continue
        first = recipe(f"text-{domain}", base(), {domain: domain}, pruned(size), size, 0)
        made = run(first, folder, quiet=True, until="corpus")
        text = Sequences.load(made.path / "corpus" / "train.safetensors")
        train_teacher(text, size.steps, folder / domain, number)
        shutil.rmtree(made.path)
    return {domain: {"kind": "huggingface", "name": str(folder / domain)} for domain in DOMAINS}


def one_seed(teachers: dict[str, dict[str, Any]], start: Path, folder: Path, size: Size, seed: int) -> dict[str, Any]:
    """The students of a seed: what they were measured on, and the KL of the student of both to both teachers, by domain."""
    student = {"kind": "existing", "name": str(start)}

    def distilled(name: str, *domains: str) -> Any:
        made = recipe(f"{name}-{seed}", teachers, {domain: domain for domain in domains}, student, size, seed)
        shutil.rmtree(folder / made.name, ignore_errors=True)
        return run(made, folder, quiet=True, until="evaluate")

    both = distilled("both", *DOMAINS)
    to_teacher = {
        name: dict(zip(DOMAINS, kl_by_source(both, Path(section["name"])), strict=True))
        for name, section in teachers.items()
    }
    made = [both, *(distilled(f"only-{domain}", domain) for domain in DOMAINS)]
    found = {
        "seed": seed,
        "both": dict(zip(DOMAINS, measured(both), strict=True)),
        "alone": {domain: measured(one)[0] for domain, one in zip(DOMAINS, made[1:], strict=True)},
        "of_both_to_teacher": to_teacher,
    }
    for one in made:
        shutil.rmtree(one.path)
    return found


def swapped(to_teacher: dict[str, dict[str, float]]) -> float:
    """KL to each domain's other teacher over that to its own, both the mean over domains."""
    own = statistics.mean(to_teacher[domain][domain] for domain in DOMAINS)
    return (
        statistics.mean(to_teacher[other][domain] for domain in DOMAINS for other in DOMAINS if other != domain) / own
    )


def main() -> None:
    """Make teachers and students, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="folder that keeps teachers and finished seeds")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else WHOLE
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kept = report.Kept(folder / "seeds.json", asdict(size) | {"dtype": str(material.fastest())})

        @functools.cache
        def prepared() -> tuple[dict[str, dict[str, Any]], Path]:
            return teachers_of(folder, size), start_of(folder, size)

        def made(seed: int) -> dict[str, Any]:
            return one_seed(*prepared(), folder, size, seed)

        found = [kept.cell(str(seed), functools.partial(made, seed)) for seed in seeds]
    ratios = {
        domain: [entry["both"][domain]["kl"] / entry["alone"][domain]["kl"] for entry in found] for domain in DOMAINS
    }
    ratios["swapped"] = [swapped(entry["of_both_to_teacher"]) for entry in found]
    figures = {f"{name}_ratio": statistics.mean(values) for name, values in ratios.items()}
    details = {
        "bar": 1.05,
        "intervals": {name: report.interval(values) for name, values in ratios.items()},
        "intervals_are": "Student's, over seeds of training, on the same held-out documents and teachers",
        "seeds": found,
        "size": asdict(size),
    }
    report.write(figures, details, arguments.json)


if __name__ == "__main__":
    main()
