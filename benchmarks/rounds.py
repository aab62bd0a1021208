"""On-policy distillation in rounds against the corpus alone: at equal sequences, and at equal CPU seconds of everything.

    .venv/bin/python -m benchmarks.rounds [--quick] [--json FILE] [--work FOLDER]

The teacher is SmolLM2-135M-Instruct, the student half of its layers, pruned and repaired by the stage `shrink`; with
``--quick`` the teacher is a model of 350,000 parameters that is trained here on the same documentation for seconds, so that
figures of ``--quick`` say nothing of larger ones. Text is Python's own documentation. Each seed's order of training comes from
a secret of its own, and three students are trained from one start:

- ``rounds``: `distill.rounds`, as a recipe has it (forward KL on a sampled cache);
- ``corpus``: the same steps on the corpus alone (it learns a little more positions: beginnings are not learned);
- ``corpus_longer``: the corpus alone for as many more steps as take the CPU seconds of ``rounds``, with writing, opening
  student and teacher, and scoring.

Each is judged on natural held-out text (``natural_kl``), and on what it writes itself behind held-out beginnings: forward and
reverse KL (``own_kl``, ``own_reverse_kl``), the teacher's nats per token of it (``own_teacher_nats``: lower is text that the
teacher finds likelier), and the share of distinct 3-grams in it (``distinct_3grams``). Figures are means over three seeds:
``…_over_corpus`` is ``rounds`` over ``corpus``, ``…_over_longer`` is ``rounds`` over ``corpus_longer``, paired by seed;
``own_teacher_nats_…`` are differences. The bar for turning rounds on by default, all at equal seconds: ``own_reverse_kl`` at
most 0.90 with an interval clear of 1, ``own_teacher_nats`` not up, ``natural_kl`` at most 1.02. ``--objective`` takes another
loss for all three students, ``--seeds`` fewer seeds. ``--work`` names a folder that keeps the teacher, the run before training
and every finished seed, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import material, report
from stillroom.core.progress import Progress
from stillroom.core.secret import Secret, write_secret
from stillroom.corpus.cutting import Piece
from stillroom.corpus.mapped import MappedSequences, open_split
from stillroom.corpus.pieces import PieceList
from stillroom.corpus.sequences import IGNORED, Sequences
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.load import load_student, load_teacher, save_model
from stillroom.models.tokenizer import open_tokenizer
from stillroom.pipeline import run as run_recipe
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import SECRET, Run
from stillroom.signals.batches import BatchSource
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.teachers.local import LocalTeacher
from stillroom.teachers.several import open_signals
from stillroom.training.batch_size import step_rows
from stillroom.training.loop import Stretch, Training
from stillroom.training.own_text import OwnWriter, beginnings
from stillroom.training.schedule import batch_order
from tests.tiny_models import tiny_model

OBJECTIVE = "forward_kl"
"""On a sampled cache. Another one needs exact signals: hidden states are captured for it."""
SEEDS = (0, 1, 2)
ARMS = ("rounds", "corpus", "corpus_longer")
RATIOS = ("natural_kl", "own_kl", "own_reverse_kl", "distinct_3grams")
OWN = {"kind": "own", "decided_by": "the benchmark", "decided_at": "2026-11-27T00:00:00Z", "subject": "teacher"}
FLOOR = -50.0
"""Least log-probability of the teacher's that counts in a reverse KL: an id that begins no token of the teacher's has none."""


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    length: int
    train_tokens: int
    epochs: int
    layers: int
    rate: float
    batch_tokens: int
    rounds: dict[str, Any]
    answers: int
    natural_rows: int
    objective: str = OBJECTIVE


FULL = Size(
    256,
    61_440,
    2,
    15,
    5e-4,
    1024,
    {"count": 4, "own_share": 0.25, "prompt_tokens": 32, "new_tokens": 128},
    96,
    64,
)
QUICK = Size(
    128,
    12_288,
    3,
    1,
    1e-3,
    512,
    {"count": 4, "own_share": 0.25, "prompt_tokens": 16, "new_tokens": 48},
    48,
    24,
)
TEACHER_STEPS, TEACHER_ROWS, TEACHER_RATE = 120, 8, 4e-3
"""Of the teacher that ``--quick`` trains."""


def recipe_of(size: Size, teacher: dict[str, Any], *, rounds: bool, layers: int | None = None) -> Recipe:
    """The recipe of one student."""
    return Recipe.model_validate(
        {
            "name": "rounds",
            "compute": {"device": "cpu", "threads": 1},
            "corpus": {
                "sources": [{"kind": "python_docs"}],
                "sequence_length": size.length,
                "train_tokens": size.train_tokens,
                "validation_tokens": 8 * size.length,
                "heldout_tokens": size.natural_rows * size.length,
            },
            "teacher": teacher,
            "student": {
                "kind": "shrink",
                "layers": size.layers if layers is None else layers,
                "importance": {"tokens": 8192, "leave_one_out": False},
            },
            **({} if size.objective == OBJECTIVE else {"capture": {"codec": {"kind": "hidden"}}}),
            "distill": {
                "objective": size.objective,
                "batch_tokens": size.batch_tokens,
                "learning_rate": size.rate,
                "epochs": size.epochs,
                **({"rounds": size.rounds} if rounds else {}),
            },
            "baseline": False,
            "terms": {"decisions": [OWN]},
        }
    )


def small_teacher(size: Size, folder: Path) -> dict[str, Any]:
    """A teacher of a million parameters, trained on the corpus that it will teach; as a recipe's section."""
    kept = folder / "teacher"
    if kept.is_dir():
        return {"kind": "huggingface", "name": str(kept), "dtype": "float32"}
    section = {
        "kind": "huggingface",
        "name": str(tiny_model("llama", folder / "words", vocabulary_size=1024, layers=3, hidden=96)),
        "dtype": "float32",
    }
    made = run_recipe(recipe_of(size, section, rounds=False), folder, quiet=True, until="corpus")
    text = Sequences.load(made.path / "corpus" / "train.safetensors")
    model, tokenizer = load_student(folder / "words", torch.float32)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.05)
        else:
            torch.nn.init.ones_(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACHER_RATE)
    for step, rows in enumerate(batch_order(len(text), TEACHER_ROWS, 10**3, 0)[:TEACHER_STEPS]):
        for group in optimizer.param_groups:
            group["lr"] = TEACHER_RATE * min(1.0, (step + 1) / 20, 2 * (1 - step / TEACHER_STEPS))
        states = hidden_states(model, text.ids[rows], text.positions[rows])
        targets = text.targets[rows]
        chosen = targets != IGNORED
        loss = torch.nn.functional.cross_entropy(logits_from_hidden(model, states[chosen]), targets[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    sys.stderr.write(f"teacher: {loss.item():.2f} nats after {TEACHER_STEPS} steps\n")
    save_model(model.eval(), tokenizer, kept)
    shutil.rmtree(made.path)
    return section | {"name": str(kept)}


def with_secret(prepared: Run, folder: Path, seed: int) -> Run:
    """A copy of a run before its training, with a secret of its own, so that the order of training is another."""
    shutil.copytree(prepared.path, folder / prepared.path.name)
    made = Run.open(folder / prepared.path.name)
    (made.path / SECRET).unlink(missing_ok=True)
    write_secret(made.path / SECRET, Secret(hashlib.sha256(f"benchmarks.rounds {seed}".encode()).digest()))
    return made


def by_rounds(size: Size, teacher: dict[str, Any], folder: Path) -> tuple[Any, float, dict[str, Any]]:
    """The student of the recipe, the CPU seconds of its stage `distill`, and the stage's notes."""
    times: dict[str, float] = {}

    def at(stage: str, values: Any) -> None:
        if stage == "distill":
            times[str(values["event"])] = time.process_time()

    made = run_recipe(recipe_of(size, teacher, rounds=True), folder, quiet=True, until="distill", on_stage=at)
    model, _ = load_student(made.path / "distill" / "model", torch.float32)
    record = made.stage("distill").record
    assert record is not None
    return model, times["finished"] - times["begun"], record["notes"]


def on_corpus(made: Run, size: Size, steps: int | None) -> tuple[Any, float, float, int]:
    """The same start trained on the corpus alone; its CPU seconds, those of them before the first step, and its steps.

    Args:
        made: A run whose student is pruned and whose corpus is captured.
        size: As everywhere.
        steps: Steps; None is as many as the recipe has.
    """
    begun = time.process_time()
    config = recipe_of(size, made.recipe.teacher.model_dump(), rounds=False).distill
    cache = open_signals(made)
    vocabulary = VocabularyMap.load(made.path / "shrink" / "vocabulary.safetensors")
    text = open_split(made.path / "corpus" / "train.safetensors")
    rows = step_rows(config, text.tokens, text.length)
    per_pass = -(-len(text) // rows)
    wanted = size.epochs * per_pass if steps is None else steps
    order = batch_order(len(text), rows, -(-wanted // per_pass), made.randomness)[:wanted]
    model, _ = load_student(made.path / "shrink" / "model", torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        training = Training(
            title="distill",
            model=model,
            config=config,
            train=BatchSource(text, vocabulary, cache),
            validation=BatchSource(open_split(made.path / "corpus" / "validation.safetensors"), vocabulary, cache),
            distill=True,
            folder=Path(scratch),
            seed=made.randomness,
            device=torch.device("cpu"),
            used=vocabulary.student_used,
            progress=Progress(quiet=True),
            event=lambda **_: None,
            stretch=Stretch(order, rows, len(order)),
        )
        opened = time.process_time() - begun
        training.run()
    return training.model, time.process_time() - begun, opened, len(order)


class Judge:
    """Judges students on natural text and on their own.

    Args:
        made: The run before training.
        size: As everywhere.
    """

    def __init__(self, made: Run, size: Size) -> None:
        self.size = size
        self.teacher = LocalTeacher(load_teacher(made.recipe.teacher, "cpu", torch.float32))
        self.vocabulary = VocabularyMap.load(made.path / "shrink" / "vocabulary.safetensors")
        self.heldout = open_split(made.path / "corpus" / "heldout.safetensors")
        self.student_tokenizer = open_tokenizer(made.path / "shrink" / "model")
        self.rounds = recipe_of(size, made.recipe.teacher.model_dump(), rounds=True).distill.rounds

    def __call__(self, model: Any, folder: Path) -> dict[str, float]:
        """All figures of one student."""
        model = model.eval()
        natural = self.compared(model, self.heldout.part(slice(self.size.natural_rows)))
        pieces, written = self.written(model, folder)
        own = self.compared(model, pieces)
        grams = [tuple(row[at : at + 3]) for row in written for at in range(len(row) - 2)]
        return {
            "natural_kl": natural["kl"],
            "natural_reverse_kl": natural["reverse_kl"],
            "own_kl": own["kl"],
            "own_reverse_kl": own["reverse_kl"],
            "own_teacher_nats": own["teacher_nats"],
            "own_positions": own["positions"],
            "distinct_3grams": len(set(grams)) / max(1, len(grams)),
        }

    def written(self, model: Any, folder: Path) -> tuple[Sequences, list[list[int]]]:
        """What a student writes behind held-out beginnings, the same for all students: as sequences, and in its own ids."""
        assert self.rounds is not None
        writer = OwnWriter(
            model,
            self.student_tokenizer,
            self.vocabulary,
            self.teacher.vocabulary.tokenizer,
            self.rounds,
            self.size.length,
        )
        taken = beginnings(self.heldout, self.rounds, np.random.default_rng(0), Counter())
        prompts = [prompt for ids in taken if (prompt := writer.prompt(ids)) is not None][: self.size.answers]
        found: list[Piece] = []
        texts: list[list[int]] = []
        for begin in range(0, len(prompts), writer.rows):
            group = prompts[begin : begin + writer.rows]
            for prompt, tokens in zip(group, writer.write(group, 1_000 + begin), strict=True):
                texts.append(tokens)
                piece, _ = writer.piece(prompt, tokens)
                if not isinstance(piece, str):
                    found.append(piece)
        pieces = PieceList(self.size.length, 0, folder=folder)
        for piece in found:
            pieces.add([piece], 0)
        return Sequences.pack(pieces.finish()), texts

    @torch.inference_mode()
    def compared(self, model: Any, text: Sequences | MappedSequences) -> dict[str, float]:
        """Means over the positions that both predict: KLs in nats, and the teacher's nats per token of the text."""
        source = BatchSource(text, self.vocabulary, None)
        used = self.vocabulary.student_used
        kl = reverse = nats = 0.0
        positions = 0
        for row in range(len(text)):
            one = text.part([row])
            ids = source.batch([row])
            states = hidden_states(model, ids.ids, ids.positions)[0, source.speaking(row)]
            students = logits_from_hidden(model, states)[:, :used].log_softmax(1)
            scores = torch.cat([part.log_softmax(1) for _, parts in self.teacher.score(one, [0]) for part in parts])
            targets = one.targets[0][one.targets[0] != IGNORED]
            nats -= float(scores.gather(1, targets[:, None]).clamp_min(FLOOR).sum())
            teachers = self.vocabulary.project_dense(scores)[:, :used].clamp_min(FLOOR)
            kl += float((teachers.exp() * (teachers - students)).sum())
            reverse += float((students.exp() * (students - teachers)).sum())
            positions += len(targets)
        count = max(1, positions)
        return {"kl": kl / count, "reverse_kl": reverse / count, "teacher_nats": nats / count, "positions": positions}


def one_seed(prepared: Run, teacher: dict[str, Any], size: Size, folder: Path, seed: int) -> dict[str, Any]:
    """The three students of a seed, judged."""
    made = with_secret(prepared, folder, seed)
    judged: dict[str, Any] = {}
    seconds: dict[str, float] = {}

    def judge(arm: str, model: Any) -> None:
        judged[arm] = Judge(made, size)(model, folder)
        sys.stderr.write(f"seed {seed}, {arm}, {seconds.get(arm, 0):.0f} CPU s: {judged[arm]}\n")
        gc.collect()

    if seed == SEEDS[0]:
        judge("start", load_student(made.path / "shrink" / "model", torch.float32)[0])
    model, seconds["corpus"], opened, steps = on_corpus(made, size, None)
    judge("corpus", model)
    del model
    model, seconds["rounds"], notes = by_rounds(size, teacher, folder)
    judge("rounds", model)
    del model
    # Opening takes its seconds once, however many the steps.
    more = round(steps * (seconds["rounds"] - opened) / (seconds["corpus"] - opened))
    model, seconds["corpus_longer"], _, longer = on_corpus(made, size, more)
    judge("corpus_longer", model)
    del model
    own = {
        key: notes["rounds"][key] for key in ("written_tokens", "scored_tokens", "learned", "same_ids", "learned_texts")
    }
    shutil.rmtree(made.path)
    return {
        "seed": seed,
        "judged": judged,
        "cpu_seconds": seconds,
        "steps": {"corpus": steps, "corpus_longer": longer},
        "rounds": own,
    }


def summary(found: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Figures, and their intervals over seeds."""
    paired: dict[str, list[float]] = {}
    for name, other in (("corpus", "corpus"), ("longer", "corpus_longer")):
        for figure in RATIOS:
            paired[f"{figure}_over_{name}"] = [
                entry["judged"]["rounds"][figure] / entry["judged"][other][figure] for entry in found
            ]
        paired[f"own_teacher_nats_against_{name}"] = [
            entry["judged"]["rounds"]["own_teacher_nats"] - entry["judged"][other]["own_teacher_nats"]
            for entry in found
        ]
        paired[f"seconds_over_{name}"] = [
            entry["cpu_seconds"]["rounds"] / entry["cpu_seconds"][other] for entry in found
        ]
    figures = {name: statistics.mean(values) for name, values in paired.items()}
    return figures, {name: report.interval(values) for name, values in paired.items()}


def main() -> None:
    """Make the students, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--work", type=Path, help="folder that keeps the teacher, the run before training and finished seeds"
    )
    parser.add_argument("--objective", default=OBJECTIVE, help="of all three students, such as reverse_kl")
    parser.add_argument(
        "--seeds", type=int, choices=range(1, len(SEEDS) + 1), default=len(SEEDS), help="so many of three"
    )
    arguments = parser.parse_args()
    size = replace(QUICK if arguments.quick else FULL, objective=arguments.objective)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        asked = {name: value for name, value in vars(size).items() if (name, value) != ("objective", OBJECTIVE)}
        kept = report.Kept(folder / "seeds.json", asked)

        @functools.cache
        def prepared() -> tuple[Run, dict[str, Any]]:
            teacher = small_teacher(size, folder) if arguments.quick else material.TEACHER.model_dump(mode="json")
            first = recipe_of(size, teacher, rounds=False)
            run_recipe(first, folder / "start", quiet=True, until="capture")
            return run_recipe(first, folder / "start", quiet=True, until="shrink"), teacher

        def made(seed: int) -> dict[str, Any]:
            shutil.rmtree(folder / f"seed-{seed}", ignore_errors=True)
            return one_seed(*prepared(), size, folder / f"seed-{seed}", seed)

        found = [kept.cell(str(seed), functools.partial(made, seed)) for seed in SEEDS[: arguments.seeds]]
    figures, intervals = summary(found)
    figures["cpu_seconds"] = sum(sum(entry["cpu_seconds"].values()) for entry in found)
    details = {
        "bar": {
            "own_reverse_kl_over_longer": 0.9,
            "natural_kl_over_longer": 1.02,
            "own_teacher_nats_against_longer": 0.0,
        },
        "intervals": intervals,
        "seeds": found,
        "size": vars(size),
        "teacher": "trained here" if arguments.quick else "SmolLM2-135M-Instruct",
    }
    report.write(figures, details, arguments.json)


if __name__ == "__main__":
    main()
