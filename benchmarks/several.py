"""Two teachers, each for its own domain: whether one student of both is as near to each as a student of that one alone.

    .venv/bin/python -m benchmarks.several [--quick] [--json FILE]

Two small teachers with SmolLM2's tokenizer are trained here by cross-entropy, one on Python's language reference, the other on
the standard library's docstrings. Then the same fresh student is distilled three times from recipes: from both, each domain
from its own teacher (`teachers`), and from each alone, on the same documents of that domain for the same epochs.
``reference_ratio`` and ``docstrings_ratio`` are the held-out KL of the student of both over that of the student of one, on
that domain, to that domain's teacher; the mean over seeds, with Student's interval in the details. The bar is 1.05. Two
domains share one student's capacity, and each also teaches it what both have in common: either may be the larger effect.
``swapped_ratio`` is what a student of both loses if the two teachers are exchanged: near 1, the teachers hardly differ and the
figures above say little. ``--quick`` takes a few documents and one seed.
"""

from __future__ import annotations

import argparse
import json
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


def main() -> None:
    """Make teachers and students, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    documents, steps, epochs = (
        (QUICK_DOCUMENTS, QUICK_STEPS, QUICK_EPOCHS) if arguments.quick else (DOCUMENTS, STEPS, EPOCHS)
    )
    seeds = SEEDS[:1] if arguments.quick else SEEDS
    ratios: dict[str, list[float]] = {name: [] for name in (*DOMAINS, "swapped")}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        loaded = material.teacher(torch.float32)
        teachers = {}
        for number, domain in enumerate(DOMAINS):
            made = run(
                recipe(
                    f"text-{domain}", {domain: _tokenizer(loaded, folder / "words")}, {domain: domain}, documents, 1, 0
                ),
                folder,
                quiet=True,
                until="corpus",
            )
            text = Sequences.load(made.path / "corpus" / "train.safetensors")
            teachers[domain] = train_teacher(text, steps, folder / domain, number)
        del loaded
        both = {domain: domain for domain in DOMAINS}
        swapped = dict(zip(DOMAINS, reversed(DOMAINS), strict=True))
        for seed in seeds:

            def distilled(name: str, routes: dict[str, str], seed: int = seed) -> list[float]:
                made = recipe(f"{name}-{seed}", teachers, routes, documents, epochs, seed)
                return kls(run(made, folder, quiet=True, until="evaluate"))

            together = dict(zip(DOMAINS, distilled("both", both), strict=True))
            alone = {domain: distilled(f"only-{domain}", {domain: domain})[0] for domain in DOMAINS}
            exchanged = dict(zip(DOMAINS, distilled("swapped", swapped), strict=True))
            for domain in DOMAINS:
                ratios[domain].append(together[domain] / alone[domain])
            ratios["swapped"].append(statistics.mean(exchanged.values()) / statistics.mean(together.values()))
            found.append({"seed": seed, "both": together, "alone": alone, "swapped": exchanged})
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
