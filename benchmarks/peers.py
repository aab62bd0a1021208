"""Stillroom against what people would take instead, at equal CPU seconds of the process tree.

    .venv/bin/python -m benchmarks.peers [--minutes 10] [--seeds 3] [--quick] [--cell NAME] [--work FOLDER] [--json FILE]

One teacher (the quickstart's), one text (whole chats of the quickstart's sources, at most 512 tokens), one size, two threads;
``--minutes`` of both threads, so ten minutes are 1,200 CPU seconds. Cells, each a student and a seed:

- ``stillroom``: the quickstart's recipe, its tokens chosen so that the command's whole tree keeps to the budget; where these
  are so many that ``batch_tokens: auto`` takes larger steps than the recipe, these, at a rate that grows with their root; with
  many passes over the text, the finer draw of the teacher's signals that the plan advises;
- ``trl_pruned``: TRL's GKD (forward KL on the text) on a student of evenly spaced layers;
- ``trl_repaired``: the same on our repaired start, with our vocabulary: what our teaching is worth alone;
- ``trl_torch_pruning``: the same on Torch-Pruning's start;
- ``top_k_pruned``: DistillKit's offline loss by its definition (it is on no package index), on the evenly pruned student;
- ``cross_entropy_pruned``: transformers' Trainer without the teacher, on the evenly pruned student.

What counts: of Stillroom everything that its process does, loading too; of peers tokenization, pruning, the teacher's passes
and training, not imports and loading. A peer's learning rate is the best by validation KL after a tenth of the budget:
from 3e-4 on, rates about three times apart are tried until both neighbours of the best one are worse; that is free of charge.
It falls to zero exactly as the budget ends. Students of peers keep the teacher's whole vocabulary and have at least our
student's parameters. All students are measured by :mod:`benchmarks.judge`; KL is compared over our student's ids, which can
only make a peer's smaller. Six tasks are written to disk and scored by lm-evaluation-harness.
``kl_over_best_peer_…`` is against the best of all cells, ``kl_over_best_own_start_…`` against the best of those that do not
begin with our start. Finished cells are kept in ``FOLDER/cells.json``; ``--cell 10min/stillroom/0`` (or ``stillroom``) runs
some again: of ours, peers on our start too, and the other peers are measured again. Cells of other code or another machine
are told by name.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import budget, judge, material, report, torch_pruning_peer
from benchmarks.evaluation import harness_python
from benchmarks.material import evenly_spaced
from stillroom.core.files import digest_file, read_json, write_json
from stillroom.models.families.registry import family_of
from stillroom.models.load import count_parameters, load_teacher, save_model
from stillroom.planning.plan import MANY_PASSES
from stillroom.recipe.reading import load_recipe
from stillroom.signals.vocabulary_map import VocabularyMap
from stillroom.students.embeddings import keep_rows
from stillroom.training.batch_size import step_rows

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "quickstart.yaml"
LONGEST = 512
LADDER = tuple(float(f"{digit}e{power}") for power in range(-6, 0) for digit in (1, 3))
"""Learning rates that peers are tried at, as far as they are needed."""
FIRST_RATE = 3e-4
MOST_RATES = 8
TRIAL_SHARE, TRIAL_CHATS = 0.1, 16
CALIBRATION_TOKENS, QUICK_CALIBRATION_TOKENS = 57_344, 8192
"""Of the run that costs are foretold from; the long one has as much text as the recipe repairs the student on."""
FINE_TAU = 0.008
"""What the plan advises for so many passes."""
TRIES = 3
ROOM = 1.005
"""Peers' students have at least this times the parameters of ours."""
TASK_ITEMS = 100
PEERS = {
    "trl_pruned": ("gkd", "pruned"),
    "trl_repaired": ("gkd", "repaired"),
    "trl_torch_pruning": ("gkd", "torch_pruning"),
    "top_k_pruned": ("top_k", "pruned"),
    "cross_entropy_pruned": ("cross_entropy", "pruned"),
}
"""Method and start of each peer."""
OURS = "stillroom"
SIZES = {
    "stillroom": "the quickstart's shape; vocabulary cut to the text",
    "pruned": "the fewest evenly spaced layers with at least our parameters; whole vocabulary",
    "repaired": "our own start, so our parameters and our vocabulary; the teacher is cut to the same ids",
    "torch_pruning": "the largest pruning ratio that leaves at least our parameters; whole vocabulary",
}
LEFT_OUT = {
    "DistillKit": "on no package index; `top_k_pruned` is its offline loss by its own definition, written here",
    "a free model of this size": "none is carried by a package, and models of a hub cannot be fetched offline",
}
QUICK = {10: 150.0, 30: 220.0}
"""CPU seconds of a cell with ``--quick``, in place of those of so many minutes."""
QUICK_ITEMS, QUICK_CHATS, QUICK_TRIES = 20, 40, 2


class NotToBeHad(Exception):
    """A peer that cannot be installed or made, and why."""


def environment(name: str, *packages: str) -> Path:
    """The Python of an environment in ``.venvs``, made if it is not there, or of other packages or another Python.

    Raises:
        NotToBeHad: It cannot be installed.
    """
    import transformers

    folder = ROOT / ".venvs" / name
    python, mark = folder / "bin" / "python", folder / "whole"
    pinned = [f"torch=={torch.__version__.partition('+')[0]}", f"transformers=={transformers.__version__}", "psutil"]
    asked = repr((sys.version, *pinned, *packages))
    if mark.is_file() and mark.read_text(encoding="utf-8") == asked:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *pinned, *packages],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotToBeHad(f"{name} cannot be installed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    mark.write_text(asked, encoding="utf-8")
    return python


class Bench:
    """The work folder: material that all cells share, and the file of finished cells.

    Args:
        folder: The work folder.
        recipe: What Stillroom runs.
        budgets: CPU seconds of a cell by minutes, where they are not those of the minutes.
        quick: Fewer held-out chats and problems, one learning rate for peers, fewer tries of ours.
    """

    def __init__(self, folder: Path, recipe: Path, budgets: dict[int, float], *, quick: bool = False) -> None:
        self.folder, self.recipe, self.budgets, self.quick = folder.resolve(), recipe.resolve(), budgets, quick
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "cells.json"
        self.kept: dict[str, Any] = report.read_kept(self.path) or {}
        for name, digest in (("recipe", digest_file(self.recipe)), ("files", material.recipe_digest(self.recipe))):
            if self.kept.setdefault(name, digest) != digest:
                raise SystemExit(f"{self.path} belongs to another {self.recipe.name}; give another folder by --work.")
        if self.kept.setdefault("quick", quick) != quick:
            raise SystemExit(
                f"{self.path} was made {'without' if quick else 'with'} --quick; give another folder by --work."
            )
        self.cells: dict[str, Any] = self.kept.setdefault("cells", {})
        self.here = report.made_by()
        self.config = load_recipe(self.recipe)

    def keep(self) -> None:
        """Write the file of cells."""
        report.write_kept(self.path, self.kept)

    def earlier(self) -> list[str]:
        """Cells that other code or another machine trained or measured."""
        return [
            key
            for key, cell in self.cells.items()
            if any(
                name in cell and cell.get(by) != self.here
                for name, by in (("folder", "from"), ("sums", "measured_from"))
            )
        ]

    def seconds(self, minutes: int) -> float:
        """CPU seconds of a cell."""
        return self.budgets.get(minutes, budget.cpu_seconds(minutes))

    # Material

    def prepare(self) -> None:
        """Teacher, texts and tasks on disk."""
        if (self.folder / "tasks" / "whole").is_file():
            return
        loaded = load_teacher(self.config.teacher, "cpu", torch.float32)
        save_model(loaded.model, loaded.tokenizer, self.folder / "teacher")
        splits = judge.chats_of(self.config.corpus, loaded.tokenizer, LONGEST)
        (self.folder / "text").mkdir(exist_ok=True)
        for name, chats in splits.items():
            lines = (json.dumps({"messages": list(chat)}, ensure_ascii=False) + "\n" for chat in chats)
            (self.folder / "text" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        write_tasks(
            self.folder / "tasks",
            [chat[-1]["content"] for chat in splits["heldout"]],
            QUICK_ITEMS if self.quick else TASK_ITEMS,
        )
        ids = loaded.tokenizer(
            [loaded.tokenizer.apply_chat_template(list(chat), tokenize=False) for chat in splits["train"]],
            add_special_tokens=False,
        ).input_ids
        longest = self.config.corpus.skip_longer_than or LONGEST
        self.kept["material"] = {
            "chats": {name: len(chats) for name, chats in splits.items()},
            "longest_tokens": LONGEST,
            "train_tokens": sum(map(len, ids)),
            # Our recipe leaves longer chats out.
            "train_tokens_of_ours": sum(len(row) for row in ids if len(row) <= longest),
            "teacher_parameters": count_parameters(loaded.model),
        }
        (self.folder / "tasks" / "whole").touch()
        self.keep()

    def text(self, name: str) -> list[judge.Chat]:
        """The chats of a split."""
        with open(self.folder / "text" / f"{name}.jsonl", encoding="utf-8") as stream:
            return [tuple(json.loads(line)["messages"]) for line in stream]

    @property
    def heldout(self) -> list[judge.Chat]:
        """What students are measured on."""
        return self.text("heldout")[: QUICK_CHATS if self.quick else None]

    # Stillroom

    @property
    def available(self) -> int:
        """Tokens of training text that every try of ours can have."""
        return int(0.95 * self.kept["material"]["train_tokens_of_ours"]) // 1024 * 1024

    def run_ours(self, name: str, tokens: int, seed: int) -> tuple[Path, budget.Spent, int]:
        """One run of the recipe, up to the trained student, on so many tokens at most; and on how many it was."""
        epochs = passes(tokens, self.available)
        recipe = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        recipe |= {"name": name, "seed": seed, "baseline": False, "export": {"gguf": []}}
        # The file is written elsewhere: what the recipe names by its own folder is named whole.
        recipe["terms"] = self.config.terms.model_dump(mode="json", exclude_defaults=True)
        # A document's split depends on its content alone, so that training and validation text stay what they are; of
        # held-out text, which is measured outside, the recipe gets one document.
        texts = [
            {"kind": "jsonl", "path": str(self.folder / "text" / f"{part}.jsonl")} for part in ("train", "validation")
        ]
        recipe["corpus"] |= {
            "sources": texts,
            "train_tokens": max(1024, tokens // epochs // 1024 * 1024),
            "validation_tokens": None,
            "heldout_tokens": None,
        }
        recipe["distill"] = recipe.get("distill", {}) | {"epochs": epochs} | self.steps(tokens)
        if epochs >= MANY_PASSES:
            recipe["capture"] = recipe.get("capture", {}) | {"codec": {"kind": "threshold", "tau": FINE_TAU}}
        runs = self.folder / "runs"
        shutil.rmtree(runs / name, ignore_errors=True)
        runs.mkdir(exist_ok=True)
        file = runs / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "stillroom",
            "run",
            file,
            "--runs",
            runs,
            "--until",
            "distill",
            "--quiet",
        ]
        log = runs / f"{name}.log"
        spent = budget.run(command, log=log)
        if spent.returncode:
            raise SystemExit(f"`stillroom run {file}` failed:\n{tail(log)}")
        each: int = read_json(runs / name / "corpus" / "stage.json")["notes"]["tokens"]["train"]
        return runs / name, spent, epochs * each

    def steps(self, tokens: int) -> dict[str, Any]:
        """What the recipe says of a step is for its own text: a longer run takes those of ``auto``, at a rate by their root."""
        own, length = self.config.distill, self.config.corpus.sequence_length
        rows = step_rows(own.model_copy(update={"batch_tokens": "auto", "epochs": 1}), tokens, length)
        before = step_rows(own, tokens, length)
        if rows <= before or own.learning_rate == "auto":
            return {}
        return {"batch_tokens": rows * length, "learning_rate": own.learning_rate * math.sqrt(rows / before)}

    def calibration(self) -> None:
        """One short run that is not counted, for what our run costs over its tokens."""
        if "calibration" not in self.kept:
            tokens = QUICK_CALIBRATION_TOKENS if self.quick else min(CALIBRATION_TOKENS, self.available)
            folder, spent, tokens = self.run_ours("calibration", tokens, 1000)
            self.kept["calibration"] = {
                "tokens": tokens,
                "cpu_seconds": spent.cpu_seconds,
                "stages": stage_seconds(folder),
            }
            self.keep()
            shutil.rmtree(folder)

    def first_guess(self, minutes: int, seed: int) -> budget.Cost:
        """What our run costs: by the cell of another seed that is nearest to the budget, else by the calibration."""
        wanted = self.seconds(minutes)
        known = [
            cell
            for key, cell in self.cells.items()
            if key.startswith(f"{minutes}min/{OURS}/") and key != label(minutes, OURS, seed)
        ]
        run = min(known, key=lambda cell: abs(cell["cpu_seconds"] - wanted), default=self.kept["calibration"])
        return foretold(run["cpu_seconds"], run["stages"], run["tokens"], self.available, wanted)

    def ours(self, minutes: int, seed: int) -> tuple[Path, dict[str, Any]]:
        """A run whose whole tree keeps to the budget: up to three tries, the one that uses most of it."""
        cost = self.first_guess(minutes, seed)
        allowed = self.seconds(minutes)
        tokens = cost.tokens(0.98 * allowed)
        asked: list[int] = []
        tries: list[tuple[int, float]] = []
        best: tuple[float, Path, dict[str, Any]] | None = None
        while len(tries) < (QUICK_TRIES if self.quick else TRIES):
            name = f"ours-{minutes}min-{seed}-{len(tries)}"
            asked.append(tokens)
            folder, spent, tokens = self.run_ours(name, tokens, seed)
            tries.append((tokens, spent.cpu_seconds))
            facts = {
                "cpu_seconds": spent.cpu_seconds,
                "wall_seconds": spent.wall_seconds,
                "load": spent.load,
                "tokens": tokens,
                "stages": stage_seconds(folder),
            }
            over = max(0.0, spent.cpu_seconds - allowed)
            rank = over if over else -spent.cpu_seconds / allowed
            if best is None or rank < best[0]:
                if best is not None:
                    shutil.rmtree(best[1])
                best = rank, folder, facts
            else:
                shutil.rmtree(folder)
            if 0.93 * allowed <= spent.cpu_seconds <= allowed:
                break
            # On a line through the last two tries; a short one has more of what is fixed.
            if len(tries) > 1 and tries[-1][0] != tries[-2][0]:
                cost = budget.Cost.through(tries[-2], tries[-1])
            else:
                cost = budget.Cost(
                    cost.fixed * spent.cpu_seconds / (cost.fixed + cost.per_token * tokens),
                    cost.per_token * spent.cpu_seconds / (cost.fixed + cost.per_token * tokens),
                )
            following = cost.tokens(0.96 * allowed)
            if following in asked:
                break
            tokens = following
        assert best is not None
        return best[1], best[2] | {"tries": tries, "over_budget": best[2]["cpu_seconds"] > allowed}

    # Starts of peers

    def start(self, kind: str, minutes: int, seed: int) -> tuple[Path, Path, float]:
        """A peer's start and teacher, and the CPU seconds that making it took."""
        ours = self.cell(minutes, OURS, seed)
        if kind == "repaired":
            made, stages = Path(ours["folder"]), ours["stages"]
            share = (stages["corpus"] + stages["shrink"]) / sum(stages.values())
            return made / "shrink" / "model", self.own_teacher(made), share * ours["cpu_seconds"]
        name = f"{minutes}min-{kind}"
        target = self.folder / "starts" / name
        facts = self.kept.setdefault("starts", {})
        # Our students of other seeds may have a few more ids.
        asked = int(ROOM * self.cell(minutes, OURS, 0)["parameters"])
        if not target.is_dir() or facts.get(name, {}).get("parameters", 0) < asked:
            shutil.rmtree(target, ignore_errors=True)
            target.parent.mkdir(exist_ok=True)
            spent = {"pruned": self._pruned, "torch_pruning": self._torch_pruned}[kind](asked, target)
            parameters = count_parameters(judge.open_model(target))
            if parameters < asked:
                raise NotToBeHad(f"{kind}: {parameters:,} parameters, fewer than our {asked:,}")
            facts[name] = {"cpu_seconds": spent, "parameters": parameters}
            self.keep()
        return target, self.folder / "teacher", facts[name]["cpu_seconds"]

    def _pruned(self, asked: int, target: Path) -> float:
        loaded = load_teacher(self.config.teacher, "cpu", torch.float32)
        begun = time.process_time()
        adapter = family_of(loaded.model)
        count = len(adapter.layers(loaded.model))
        each = sum(parameter.numel() for parameter in adapter.layers(loaded.model)[0].parameters())
        rest = count_parameters(loaded.model) - count * each
        layers = min(count, max(1, -(-(asked - rest) // each)))
        model = copy.deepcopy(loaded.model)
        adapter.keep_layers(model, evenly_spaced(count, layers))
        spent = time.process_time() - begun
        save_model(model, loaded.tokenizer, target)
        return spent

    def _torch_pruned(self, asked: int, target: Path) -> float:
        config = read_json(self.folder / "teacher" / "config.json")

        def parameters(ratio: float) -> int:
            hidden, width = config["hidden_size"] * (1 - ratio), config["intermediate_size"] * (1 - ratio)
            heads = (config["num_attention_heads"] + config["num_key_value_heads"]) * (
                1 - torch_pruning_peer.HEAD_RATIO
            )
            layer = hidden * 2 * heads * config["head_dim"] + 3 * hidden * width
            return int(config["vocab_size"] * hidden + config["num_hidden_layers"] * layer)

        ratio = next((percent / 100 for percent in range(80, 0, -1) if parameters(percent / 100) >= asked), 0.01)
        while ratio > 0:
            try:
                found = torch_pruning_peer.cut(self.folder / "teacher", target, ratio)
            except torch_pruning_peer.LeftOut as error:
                raise NotToBeHad(str(error)) from None
            # A model is opened with its tokenizer, which Torch-Pruning does not write.
            shutil.copytree(self.folder / "teacher", target, dirs_exist_ok=True, ignore=only_tokenizer)
            if count_parameters(judge.open_model(target)) >= asked:
                return found
            shutil.rmtree(target)
            ratio = round(ratio - 0.01, 2)
        raise NotToBeHad("Torch-Pruning leaves no student of our size")

    def own_teacher(self, run: Path) -> Path:
        """The teacher cut to the ids of a student's vocabulary, for a peer that needs both to have the same."""
        target = run / "own_teacher"
        if not target.is_dir():
            vocabulary = VocabularyMap.load(run / "shrink" / "vocabulary.safetensors")
            loaded = load_teacher(self.config.teacher, "cpu", torch.float32)
            keep_rows(loaded.model, kept_ids(vocabulary), vocabulary.student_size)
            loaded.model.config.vocab_size = vocabulary.student_size
            save_model(loaded.model, loaded.tokenizer, target)
        return target

    # Cells

    def peer(self, name: str, minutes: int, seed: int) -> tuple[Path, dict[str, Any]]:
        """A peer's student at its best learning rate."""
        # Not `.venvs/trl`, which a user makes with what :mod:`benchmarks.step` needs besides.
        python = environment("peers-trl", "trl", "accelerate", "datasets")
        allowed = self.seconds(minutes)
        rates = self.kept.setdefault("rates", {}).setdefault(f"{minutes}min/{name}", {})
        ours = Path(self.cell(minutes, OURS, 0)["folder"])
        # With --quick peers take the first rate, and try no other. One that diverges has NaN.
        while not self.quick and (following := next_rate(rates)) is not None:
            spent = allowed * TRIAL_SHARE
            folder, facts = self._train(
                python, name, f"trial-{following}", minutes, 0, float(following), spent, free=True
            )
            found = self._judge(folder, self.text("validation")[:TRIAL_CHATS], name, ours)
            rates[following] = float(found.kl.sum() / found.positions.sum())
            shutil.rmtree(folder)
            self.keep()
        rate = float(best_rate(rates)) if rates else FIRST_RATE
        folder, facts = self._train(python, name, str(seed), minutes, seed, rate, allowed, free=False)
        return folder, facts | {"learning_rate": rate, "validation_kl_by_rate": rates}

    def _train(
        self, python: Path, name: str, label: str, minutes: int, seed: int, rate: float, seconds: float, *, free: bool
    ) -> tuple[Path, dict[str, Any]]:
        method, kind = PEERS[name]
        start, teacher, spent = self.start(kind, minutes, seed)
        work = self.folder / "peers" / f"{minutes}min-{name}-{label}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        spec = {
            "method": method,
            "teacher": str(teacher),
            "student": str(start),
            "text": str(self.folder / "text" / "train.jsonl"),
            "target": str(work / "model"),
            "result": str(work / "result.json"),
            "seed": seed,
            "rate": rate,
            "cpu_seconds": seconds,
            "spent_before": 0.0 if free else spent,
        }
        write_json(work / "spec.json", spec)
        from stillroom.cli.app import SPINS

        command: list[str | Path] = [python, ROOT / "benchmarks" / "peer_training.py", work / "spec.json"]
        done = budget.run(command, {"GOMP_SPINCOUNT": SPINS}, log=work / "log")
        if done.returncode:
            raise NotToBeHad(f"{name} failed: {tail(work / 'log')}")
        return work / "model", read_json(work / "result.json") | {"load": done.load}

    def _judge(self, folder: Path, chats: Sequence[judge.Chat], name: str, ours: Path) -> judge.Judged:
        """Measure a student; ``ours`` is our run of the same seed, over whose ids all are compared."""
        loaded = load_teacher(self.config.teacher, "cpu", torch.float32)
        common = VocabularyMap.load(ours / "shrink" / "vocabulary.safetensors")
        alike = name == OURS or PEERS[name][1] == "repaired"
        rows = loaded.model.get_output_embeddings().weight.shape[0]
        student = judge.open_model(folder), common if alike else VocabularyMap.identity(rows)
        return judge.judge(loaded.model, loaded.tokenizer, {name: student}, chats, common)[name]

    def cell(self, minutes: int, name: str, seed: int) -> dict[str, Any]:
        """A finished cell, done if it is not."""
        key = label(minutes, name, seed)
        found: dict[str, Any] = self.cells.get(key, {})
        if found and found["budget_cpu_seconds"] != self.seconds(minutes):
            raise SystemExit(f"{self.path} has {key} with another budget; give another folder by --work.")
        if "sums" in found:
            return found
        sys.stderr.write(f"{key} …\n")
        try:
            if "folder" not in found:
                if name == OURS:
                    run, facts = self.ours(minutes, seed)
                    found = facts | {"folder": str(run), "model": str(run / "distill" / "model")}
                else:
                    model, facts = self.peer(name, minutes, seed)
                    found = facts | {"folder": str(model.parent), "model": str(model)}
                found |= {"budget_cpu_seconds": self.seconds(minutes), "from": self.here}
                self.cells[key] = found
                self.keep()
            ours = Path((found if name == OURS else self.cell(minutes, OURS, seed))["folder"])
            judged = self._judge(Path(found["model"]), self.heldout, name, ours)
            found |= {"measured": judged.as_dict(), "sums": judged.sums(), "measured_from": self.here}
            found["parameters"] = count_parameters(judge.open_model(Path(found["model"])))
        except NotToBeHad as error:
            sys.stderr.write(f"{key}: {error}\n")
            return {"left_out": str(error)}
        self.cells[key] = found
        self.keep()
        measured = found["measured"]["kl_common"]
        sys.stderr.write(f"{key}: KL {measured['value']:.4f} after {found['cpu_seconds']:.0f} CPU seconds\n")
        return found

    def tasks(self, key: str, model: Path) -> dict[str, Any]:
        """The six scores of one model by lm-evaluation-harness."""
        kept: dict[str, Any] = self.kept.setdefault("tasks", {})
        if key not in kept:
            python = harness_python() or environment("lm-eval", "lm-eval[hf]")
            answers = self.folder / "answers.json"
            command: list[str | Path] = [
                python,
                ROOT / "benchmarks" / "harness_side.py",
                "--tasks",
                model,
                self.folder / "tasks",
                answers,
            ]
            log = self.folder / "tasks.log"
            if budget.run(command, log=log).returncode:
                raise NotToBeHad(f"lm-evaluation-harness failed: {tail(log)}")
            kept[key] = read_json(answers)
            self.keep()
        found: dict[str, Any] = kept[key]
        return found

    def again(self, names: Sequence[str], wanted: Sequence[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
        """Forget cells, and of peers what depends on ours among them.

        Args:
            names: Whole names of cells, or students of the rounds that are wanted.
            wanted: Cells of this call, as it would be without names.

        Returns:
            All cells that are to be run or measured now.
        """
        rounds = {minutes for minutes, _, _ in wanted}
        known = [*wanted, *map(unlabelled, self.cells)]
        asked: list[tuple[int, str, int]] = []
        for name in names:
            found = [one for one in known if name == label(*one) or (name == one[1] and one[0] in rounds)]
            if not found and not re.fullmatch(rf"(10|30)min/({'|'.join((OURS, *PEERS))})/\d+", name):
                raise SystemExit(f"--cell {name}: there is no such cell; students are {', '.join((OURS, *PEERS))}.")
            asked += found or [unlabelled(name)]
        for minutes, name, seed in asked[:]:
            self._forget(label(minutes, name, seed))
            if name == OURS:
                asked += self._forget_dependent(minutes, seed)
        self.keep()
        return list(dict.fromkeys(asked))

    def _forget_dependent(self, minutes: int, seed: int) -> list[tuple[int, str, int]]:
        """Forget of peers what depends on a run of ours; the cells that lack something then."""
        found = []
        for peer, (_, start) in PEERS.items():
            key = label(minutes, peer, seed)
            if key in self.cells:
                found.append((minutes, peer, seed))
            if start == "repaired":  # it began with that run's start
                self._forget(key)
                if seed == 0:
                    self.kept.get("rates", {}).pop(f"{minutes}min/{peer}", None)
            else:  # it was measured over that run's ids, and trained without it
                for part in ("measured", "sums"):
                    self.cells.get(key, {}).pop(part, None)
        return found

    def _forget(self, key: str) -> None:
        self.cells.pop(key, None)
        self.kept.get("tasks", {}).pop(key, None)


def or_infinite(value: float) -> float:
    """A KL for comparisons, in which NaN would win or lose by where it stands."""
    return value if math.isfinite(value) else math.inf


def best_rate(tried: Mapping[str, float]) -> str:
    """The learning rate with the smallest KL; where none has one, the smallest rate."""
    return min(tried, key=lambda rate: (or_infinite(tried[rate]), float(rate)))


def next_rate(tried: Mapping[str, float]) -> str | None:
    """The next learning rate that a peer is tried at.

    Args:
        tried: Validation KL by rate, as far as there is any.

    Returns:
        The first one; then a neighbour of the best on the ladder that was not tried. None where no more are tried.
    """
    if not tried:
        return f"{FIRST_RATE:g}"
    at = LADDER.index(float(best_rate(tried)))
    near = [f"{rate:g}" for rate in LADDER[max(0, at - 1) : at + 2]]
    return next((rate for rate in near if rate not in tried), None) if len(tried) < MOST_RATES else None


def passes(tokens: int, available: int) -> int:
    """How often the text is passed over for so many training tokens."""
    return -(-tokens // available)


def foretold(spent: float, stages: dict[str, float], tokens: int, available: int, seconds: float) -> budget.Cost:
    """What a run costs over its tokens near so many CPU seconds, by one run.

    Args:
        spent: CPU seconds of that run.
        stages: Wall seconds of its stages.
        tokens: What it was trained on.
        available: Tokens of text; more are trained on in several passes over equally many.
        seconds: CPU seconds of the run that is wanted.
    """
    captured = tokens // passes(tokens, available)
    capture, distill = (
        budget.Cost.of(spent, stages, [name], of) for name, of in (("capture", captured), ("distill", tokens))
    )
    fixed = spent - capture.per_token * captured - distill.per_token * tokens
    for epochs in itertools.count(1):
        # So many passes over a part of the text, as long as it is: all of that is captured once.
        cost = budget.Cost(fixed, distill.per_token + capture.per_token / epochs)
        if cost.tokens(seconds) <= epochs * available:
            return cost
    raise AssertionError


def label(minutes: int, name: str, seed: int) -> str:
    """A cell's name."""
    return f"{minutes}min/{name}/{seed}"


def unlabelled(name: str) -> tuple[int, str, int]:
    """Minutes, student and seed of a cell's name."""
    minutes, student, seed = name.split("/")
    return int(minutes.removesuffix("min")), student, int(seed)


def tail(log: Path) -> str:
    """The last lines of a log that say something: a message's last one is what to do."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " ".join(lines[-3:])[:800] if lines else "it said nothing"


def only_tokenizer(_folder: str, names: list[str]) -> list[str]:
    """For copying: whatever does not belong to a tokenizer."""
    return [
        name
        for name in names
        if not re.match(r"(tokenizer|special_tokens|vocab|merges|added_tokens|chat_template)", name)
    ]


def kept_ids(vocabulary: VocabularyMap) -> list[int]:
    """The teacher's ids in the order of the student's: those that are one piece of its own."""
    kept = [-1] * vocabulary.student_used
    single = (vocabulary.lengths == 1).nonzero().squeeze(1)
    for teacher, student in zip(single.tolist(), vocabulary.first[single].tolist(), strict=True):
        if kept[student] == -1:
            kept[student] = teacher
    if -1 in kept:
        raise NotToBeHad(f"the student's id {kept.index(-1)} is none of the teacher's")
    return kept


def stage_seconds(run: Path) -> dict[str, float]:
    """Wall seconds of each finished stage."""
    return {path.parent.name: float(read_json(path)["seconds"]) for path in sorted(run.glob("*/stage.json"))}


# Tasks


def write_tasks(folder: Path, texts: Sequence[str], items: int) -> None:
    """Six multiple-choice tasks in lm-evaluation-harness's form: four of held-out documentation, two of generated sums."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Sequence[str], random.Random], list[dict[str, Any]]]] = {
        "next_sentence": next_sentence,
        "last_word": last_word,
        "word_order": word_order,
        "whose_text": whose_text,
        "addition": addition,
        "counting": counting,
    }
    for name, maker in makers.items():
        rows = maker(texts, random.Random(f"{name} 0"))[:items]
        if not rows:
            raise SystemExit(f"The held-out text gives no problem for the task {name}; take a recipe with more of it.")
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        task = {
            "task": f"peers_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "target_delimiter": " ",
            "metric_list": [{"metric": "acc"}],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")


def sentences(text: str) -> list[str]:
    """Sentences of plain words, of a moderate length."""
    found = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    return [one for one in found if 40 <= len(one) <= 200 and re.fullmatch(r"[A-Z][\w ,;:'()\-]+\.", one)]


def choice(prompt: str, right: str, wrong: Sequence[str], order: random.Random) -> dict[str, Any]:
    """A problem with its choices in random order."""
    choices = [right, *wrong]
    order.shuffle(choices)
    return {"prompt": prompt, "choices": choices, "answer": choices.index(right)}


def next_sentence(texts: Sequence[str], order: random.Random) -> list[dict[str, Any]]:
    """Which of four sentences follows: one does, three are of other documents."""
    pairs = [(a, b) for text in texts for a, b in zip(sentences(text), sentences(text)[1:], strict=False)]
    others = [b for _, b in pairs]
    found = []
    for first, second in pairs:
        wrong = [other for other in others if other != second]
        if len(wrong) >= 3:
            found.append(choice(first, second, order.sample(wrong, 3), order))
    order.shuffle(found)
    return found


def last_word(texts: Sequence[str], order: random.Random) -> list[dict[str, Any]]:
    """Which of four words ends a sentence; the others end other sentences."""
    split = [one[:-1].rsplit(" ", 1) for text in texts for one in sentences(text)]
    ends = sorted({end for _, end in split if end.isalpha()})
    found = []
    for begin, end in split:
        wrong = [other for other in ends if other.lower() != end.lower()]
        if end.isalpha() and len(wrong) >= 3:
            found.append(choice(begin, end, order.sample(wrong, 3), order))
    order.shuffle(found)
    return found


def word_order(texts: Sequence[str], order: random.Random) -> list[dict[str, Any]]:
    """Which of two is English: a sentence, or the same with two neighbouring words exchanged."""
    found = []
    for one in (one for text in texts for one in sentences(text)):
        words = one.split()
        at = order.randrange(1, len(words) - 2) if len(words) > 4 else 0
        other = [*words[:at], words[at + 1], words[at], *words[at + 2 :]]
        if at and other != words:
            found.append(choice(words[0], " ".join(words[1:]), [" ".join(other[1:])], order))
    order.shuffle(found)
    return found


def whose_text(texts: Sequence[str], order: random.Random) -> list[dict[str, Any]]:
    """Which of four names a documentation is of, by its first sentence."""
    named = [(text.split("(")[0].split("\n")[0].strip(), sentences(text)) for text in texts]
    named = [(name, found) for name, found in named if re.fullmatch(r"[\w.]{4,60}", name) and found]
    names = sorted({name for name, _ in named})
    found = []
    for name, lines in named:
        wrong = [other for other in names if other != name]
        if len(wrong) >= 3:
            found.append(choice(f"{lines[0]}\nThis is the documentation of", name, order.sample(wrong, 3), order))
    order.shuffle(found)
    return found


def addition(texts: Sequence[str], order: random.Random) -> list[dict[str, Any]]:  # noqa: ARG001
    """Sums of two small numbers; wrong answers are near the right one."""
    found = []
    for _ in range(1000):
        a, b = order.randrange(1, 30), order.randrange(1, 30)
        wrong = order.sample([a + b + step for step in (-10, -3, -2, -1, 1, 2, 3, 10) if a + b + step > 0], 3)
        found.append(choice(f"{a} + {b} =", str(a + b), [str(one) for one in wrong], order))
    return found


def counting(texts: Sequence[str], order: random.Random) -> list[dict[str, Any]]:  # noqa: ARG001
    """What comes next in a row of numbers with an even step."""
    found = []
    for _ in range(1000):
        begin, step = order.randrange(1, 20), order.randrange(1, 6)
        row = [begin + step * index for index in range(5)]
        wrong = order.sample([row[-1] + other for other in (-2, -1, 1, 2, 7)], 3)
        found.append(choice(f"{', '.join(map(str, row[:-1]))},", str(row[-1]), [str(one) for one in wrong], order))
    return found


# Results


def compared(cells: dict[str, Any], minutes: int) -> dict[str, Any] | None:
    """Ours against each peer on the same chats; None where ours or every peer is missing."""
    found: dict[str, dict[int, judge.Judged]] = {}
    for key, cell in cells.items():
        of, name, seed = key.split("/")
        if of == f"{minutes}min" and "sums" in cell:
            found.setdefault(name, {})[int(seed)] = judge.Judged.from_sums(cell["sums"])
    if OURS not in found or len(found) < 2:
        return None
    result: dict[str, Any] = {}
    for name in found.keys() - {OURS}:
        seeds = sorted(found[name].keys() & found[OURS].keys())
        if not seeds:
            continue
        ours, theirs = (judge.mean([found[side][seed] for seed in seeds]) for side in (OURS, name))
        by_seed = [judge.kl_ratio(found[OURS][seed], found[name][seed]).value for seed in seeds]
        result[name] = {
            "kl": float(theirs.kl_common.sum() / theirs.positions.sum()),
            "kl_whole_vocabulary": float(theirs.kl.sum() / theirs.positions.sum()),
            "ours": float(ours.kl.sum() / ours.positions.sum()),
            "kl_ratio": judge.shown(judge.kl_ratio(ours, theirs)),
            "kl_ratio_by_seed": by_seed,
            "kl_ratio_interval_over_seeds": report.interval(by_seed),
            "agreement_gain_points": judge.shown(judge.agreement_gain(ours, theirs)),
            "seeds": seeds,
        }
    return result or None


def compared_tasks(tasks: dict[str, Any], cells: dict[str, Any]) -> dict[str, Any]:
    """Scores, and McNemar's test of ours against each peer of the same minutes and seed, over all items together."""
    from stillroom.evaluation.paired import mcnemar, paired_share, share

    found: dict[str, Any] = {}
    for key, scores in tasks.items():
        found[key] = {name: share(sum(right), len(right)) for name, right in scores.items()}
        mine = tasks.get("/".join((key.split("/")[0], OURS, key.split("/")[-1])))
        if key in cells and mine is not None and mine is not scores:
            first = [one for name in sorted(mine) for one in mine[name]]
            second = [one for name in sorted(scores) for one in scores[name]]
            found[key]["ours_minus_it"] = mcnemar(first, second) | {"interval": paired_share(first, second)}
    return found


def figures_of(bench: Bench) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and details of what there is."""
    figures: dict[str, Any] = {}
    ratios: dict[str, Any] = {}
    for minutes in (10, 30):
        found = compared(bench.cells, minutes)
        ratios[f"{minutes}min"] = f"not measured: run with --minutes {minutes}" if found is None else {"against": found}
        for key, among in (
            ("best_peer", list(found or ())),
            ("best_own_start", [name for name in found or () if PEERS[name][1] != "repaired"]),
        ):
            name = f"kl_over_{key}_{minutes}min"
            figures[name] = figures[f"{name}_interval"] = None
            if found is not None and among:
                best = min(among, key=lambda peer: or_infinite(found[peer]["kl"]))
                figures[name] = found[best]["kl_ratio"]["value"]
                figures[f"{name}_interval"] = found[best]["kl_ratio"]["interval"]
                ratios[f"{minutes}min"][key] = best
    details: dict[str, Any] = {
        "ratios": ratios,
        "cells": {key: {k: v for k, v in cell.items() if k != "sums"} for key, cell in bench.cells.items()},
        "budgets_cpu_seconds": {f"{minutes}min": bench.seconds(minutes) for minutes in (10, 30)},
        "tasks": compared_tasks(bench.kept.get("tasks", {}), bench.cells),
        "sizes": SIZES,
        "left_out": LEFT_OUT | bench.kept.get("left_out", {}),
        "interval": "95 % over held-out chats (by effective chats), seeds averaged chat by chat; over seeds beside it",
    }
    details |= {name: bench.kept[name] for name in ("material", "calibration", "starts", "rates") if name in bench.kept}
    if earlier := bench.earlier():
        details["cells_of_other_code_or_machine"] = earlier
    return figures, details


def main() -> None:
    """Do what is not done, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="few CPU seconds a cell, one seed; figures keep their names"
    )
    parser.add_argument("--minutes", type=int, choices=(10, 30), default=10, help="of both threads, a cell")
    parser.add_argument("--seeds", type=int, help="3 for ten minutes, 1 for thirty")
    parser.add_argument(
        "--cell",
        action="append",
        default=[],
        metavar="NAME",
        help="run this one again, and only it and what is measured by it",
    )
    parser.add_argument("--cpu-seconds", type=float, help="CPU seconds of a cell instead, for a trial")
    parser.add_argument(
        "--recipe", type=Path, default=RECIPE, help="what Stillroom runs; the quickstart's if not given"
    )
    parser.add_argument("--work", type=Path, help="folder that keeps what is done")
    options = parser.parse_args()
    torch.set_num_threads(budget.THREADS)
    quick = options.quick or options.cpu_seconds is not None
    budgets = QUICK if options.quick else {}
    if options.cpu_seconds is not None:
        budgets = dict.fromkeys((10, 30), options.cpu_seconds)
    work = options.work or ROOT / "build" / ("peers-quick" if quick else "peers")
    bench = Bench(work, options.recipe, budgets, quick=options.quick)
    rounds = [(options.minutes, options.seeds or (3 if options.minutes == 10 else 1))]
    if options.quick:
        rounds = [(10, 1), (30, 1)]
    wanted = [(minutes, name, seed) for minutes, seeds in rounds for name in (OURS, *PEERS) for seed in range(seeds)]
    if options.quick:
        # Of the longer budget only ours and TRL on the pruned student, which it is meant to beat.
        wanted = [one for one in wanted if one[0] == 10 or one[1] in (OURS, "trl_pruned")]
    if options.cell:
        wanted = bench.again(options.cell, wanted)
    bench.prepare()
    bench.calibration()
    for minutes, name, seed in wanted:
        found = bench.cell(minutes, name, seed)
        if "left_out" in found:
            bench.kept.setdefault("left_out", {})[label(minutes, name, seed)] = found["left_out"]
            continue
        bench.kept.get("left_out", {}).pop(label(minutes, name, seed), None)
        if seed == 0:
            try:
                bench.tasks("teacher", bench.folder / "teacher")
                bench.tasks(label(minutes, name, seed), Path(found["model"]))
            except NotToBeHad as error:
                bench.kept.setdefault("left_out", {})["tasks"] = str(error)
    bench.keep()
    figures, details = figures_of(bench)
    if quick:
        details["quick"] = (
            "fewer CPU seconds than the figures' names say: budgets_cpu_seconds, and cpu_seconds of each cell"
        )
    report.write(figures, details, options.json)


if __name__ == "__main__":
    main()
