"""Two teachers, each for its own domain: whether one student of both is as near to each as a student of that one alone.

    .venv/bin/python -m benchmarks.several [--quick] [--json FILE] [--work FOLDER]

Two small teachers with SmolLM2's tokenizer are trained here by cross-entropy, one on Python's language reference, the other on
the standard library's docstrings. Then the same fresh student is distilled three times from recipes: from both, each domain
from its own teacher (`teachers`), and from each alone, on the same documents of that domain for the same epochs.
``reference_ratio`` and ``docstrings_ratio`` are the held-out KL of the student of both over that of the student of one, on
that domain, to that domain's teacher; the mean over seeds, with Student's interval in the details. The bar is 1.05. Two
domains share one student's capacity, and each also teaches it what both have in common: either may be the larger effect.
``swapped_ratio`` is what a student of both loses if the two teachers are exchanged: near 1, the teachers hardly differ and the
figures above say little. ``--quick`` takes a few documents and one seed. ``--work`` names a folder that keeps both teachers and
every finished seed, so that an interrupted benchmark goes on.
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
from stillroom.models.load import save_model
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe

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


def kls(made: Any) -> list[float]:
    """The student's held-out KL on each source."""
    fidelity = json.loads((made.path / "evaluate" / "evaluation.json").read_text())["measures"]["fidelity"]
    return [float(entry["kl_to_teacher"]) for entry in fidelity["slices"]["source"]["student"]]


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
    """The held-out KL of the students of a seed, by domain."""

    def distilled(name: str, routes: dict[str, str]) -> list[float]:
        made = recipe(f"{name}-{seed}", teachers, routes, documents, epochs, seed)
        shutil.rmtree(folder / made.name, ignore_errors=True)
        return kls(run(made, folder, quiet=True, until="evaluate"))

    both = {domain: domain for domain in DOMAINS}
    swapped = dict(zip(DOMAINS, reversed(DOMAINS), strict=True))
    return {
        "seed": seed,
        "both": dict(zip(DOMAINS, distilled("both", both), strict=True)),
        "alone": {domain: distilled(f"only-{domain}", {domain: domain})[0] for domain in DOMAINS},
        "swapped": dict(zip(DOMAINS, distilled("swapped", swapped), strict=True)),
    }


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
    ratios = {domain: [entry["both"][domain] / entry["alone"][domain] for entry in found] for domain in DOMAINS}
    ratios["swapped"] = [
        statistics.mean(entry["swapped"].values()) / statistics.mean(entry["both"].values()) for entry in found
    ]
    figures = {f"{name}_ratio": statistics.mean(values) for name, values in ratios.items()}
    details = {
        "bar": 1.05,
        "intervals": {name: report.interval(values) for name, values in ratios.items()},
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
