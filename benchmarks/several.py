"""Two teachers, each for its own domain: whether one student of both is as near to each as a student of that one alone.

    .venv/bin/python -m benchmarks.several [--quick] [--json FILE] [--work FOLDER]

Two small teachers with SmolLM2's tokenizer are trained here by cross-entropy, one on Python's language reference, the other on
the standard library's docstrings. Then the same fresh student is distilled three times from recipes: from both, each domain
from its own teacher (`teachers`), and from each alone, on the same documents of that domain for the same epochs.
``reference_ratio`` and ``docstrings_ratio`` are the held-out KL of the student of both over that of the student of one, on
that domain, to that domain's teacher; the mean over seeds, with Student's interval in the details. The bar is 1.05. Two
domains share one student's capacity, and each also teaches it what both have in common: either may be the larger effect.
``swapped_ratio`` is the held-out KL of the student of both to each domain's other teacher, over that to its own: near 1, the
teachers hardly differ and the figures above say little. ``--quick`` takes a few documents and one seed. ``--work`` names a
folder that keeps both teachers and every finished seed, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import material, report
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.load import load_student, load_teacher, save_model
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.teacher import HuggingFaceTeacher
from stillroom.signals.batches import BatchSource
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.local import LocalTeacher

DOMAINS = {"reference": "topics", "docstrings": "docstrings"}
DOCUMENTS, STEPS, EPOCHS, SEEDS = 60, 300, 8, (0, 1, 2)
QUICK_DOCUMENTS, QUICK_STEPS, QUICK_EPOCHS = 8, 2, 1
HIDDEN, LAYERS, LENGTH, ROWS = 64, 2, 128, 8
OWN = {"kind": "own", "decided_by": "the benchmark", "decided_at": "2026-11-27T00:00:00Z"}


def source(domain: str, documents: int) -> dict[str, Any]:
    """The recipe's source of a domain."""
    return {"kind": "python_docs", "parts": [DOMAINS[domain]], "limit": documents}


def recipe(
    name: str, teachers: dict[str, Path], routes: dict[str, str], documents: int, epochs: int, seed: int
) -> Recipe:
    """A recipe that learns each domain from the teacher that ``routes`` names for it; the first is the recipe's own."""
    first, *others = dict.fromkeys(routes.values())
    sources = [source(domain, documents) | ({} if who == first else {"teacher": who}) for domain, who in routes.items()]
    return Recipe.model_validate(
        {
            "name": name,
            "seed": seed,
            "compute": {"device": "cpu", "threads": 1},
            "corpus": {"sources": sources, "sequence_length": LENGTH, "heldout_tokens": None},
            "teacher": {"kind": "huggingface", "name": str(teachers[first]), "dtype": "float32"},
            "teachers": {
                who: {"kind": "huggingface", "name": str(teachers[who]), "dtype": "float32"} for who in others
            },
            "student": {"kind": "fresh", "config": {"num_hidden_layers": 1}},
            "distill": {"batch_tokens": 1024, "learning_rate": 2e-3, "epochs": epochs, "precision": "float32"},
            "baseline": False,
            "evaluate": {"measures": ["fidelity", "cost"], "speed_tokens": 0, "bootstrap_samples": 200},
            "terms": {"decisions": [OWN | {"subject": name} for name in ("teacher", *others)]},
        }
    )


def train_teacher(text: Sequences, steps: int, folder: Path, seed: int) -> Path:
    """A small model with SmolLM2's tokenizer, trained on a text by cross-entropy."""
    from transformers import LlamaConfig, LlamaForCausalLM

    loaded = material.teacher(torch.float32)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=loaded.model.get_output_embeddings().weight.shape[0],
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model: Any = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        rows = [(step * ROWS + number) % len(text) for number in range(ROWS)]
        logits = model(text.ids[rows]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), text.targets[rows].flatten(), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    save_model(model.eval(), loaded.tokenizer, folder)
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


def teachers_of(folder: Path, documents: int, steps: int) -> dict[str, Path]:
    """A teacher for each domain, trained on its text; ``folder`` keeps them."""
    loaded = material.teacher(torch.float32)
    teachers = {}
    for number, domain in enumerate(DOMAINS):
        teachers[domain] = folder / domain
        if teachers[domain].is_dir():
            continue
        words = {domain: _tokenizer(loaded, folder / "words")}
        first = recipe(f"text-{domain}", words, {domain: domain}, documents, 1, 0)
        made = run(first, folder, quiet=True, until="corpus")
        text = Sequences.load(made.path / "corpus" / "train.safetensors")
        train_teacher(text, steps, teachers[domain], number)
    return teachers


def one_seed(teachers: dict[str, Path], folder: Path, documents: int, epochs: int, seed: int) -> dict[str, Any]:
    """The students of a seed: what they were measured on, and the KL of the student of both to both teachers, by domain."""

    def distilled(name: str, *domains: str) -> Any:
        made = recipe(f"{name}-{seed}", teachers, {domain: domain for domain in domains}, documents, epochs, seed)
        shutil.rmtree(folder / made.name, ignore_errors=True)
        return run(made, folder, quiet=True, until="evaluate")

    both = distilled("both", *DOMAINS)
    to_teacher = {name: dict(zip(DOMAINS, kl_by_source(both, path), strict=True)) for name, path in teachers.items()}
    return {
        "seed": seed,
        "both": dict(zip(DOMAINS, measured(both), strict=True)),
        "alone": {domain: measured(distilled(f"only-{domain}", domain))[0] for domain in DOMAINS},
        "of_both_to_teacher": to_teacher,
    }


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
    documents, steps, epochs = (
        (QUICK_DOCUMENTS, QUICK_STEPS, QUICK_EPOCHS) if arguments.quick else (DOCUMENTS, STEPS, EPOCHS)
    )
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    asked = {"documents": documents, "steps": steps, "epochs": epochs}
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kept = report.Kept(folder / "seeds.json", asked)
        teachers = teachers_of(folder, documents, steps)
        found = [
            kept.cell(str(seed), functools.partial(one_seed, teachers, folder, documents, epochs, seed))
            for seed in seeds
        ]
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
        "documents_per_domain": documents,
        "epochs": epochs,
    }
    report.write(figures, details, arguments.json)


def _tokenizer(loaded: Any, folder: Path) -> Path:
    """A folder with SmolLM2's tokenizer and a model of its vocabulary, so that text can be made into tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if not folder.exists():
        rows = loaded.model.get_output_embeddings().weight.shape[0]
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=rows,
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                num_key_value_heads=1,
                tie_word_embeddings=True,
            )
        )
        save_model(model, loaded.tokenizer, folder)
    return folder


if __name__ == "__main__":
    main()
