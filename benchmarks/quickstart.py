"""The quickstart as a new user runs it: what it takes, and whether its student is worth having.

    .venv/bin/python -m benchmarks.quickstart [--runs 3] [--quick] [--work FOLDER] [--json FILE]

``stillroom run recipes/quickstart.yaml`` in a fresh folder, so many times, as a process of its own on two threads; its CPU
seconds are those of the whole process tree. Figures are medians over the runs, but for those of written answers and of the
comparison below, which are of the last run's student. A run that ended is kept in the work folder, and an interrupted benchmark
goes on behind it; with other code, another recipe, other files that it names, another PyTorch or machine it is made again.

The same student is then compared with the one of commit b8e6c2e, whose recipe is cut in tokens so that its command takes the
same CPU seconds (one calibration tells how many), on a *fixed second set*: the whole chats that that commit holds out, of at
most 512 tokens. That commit's code is taken out of the repository's history and run with this environment's packages; its
student is kept in the work folder for later. Where all tokens of its recipe take fewer CPU seconds, it has all of them, and
the details say how many seconds each had. Chats that the measured run trained on are left out, and counted. A figure that
cannot be had is null, with the reason in the details.

``--quick`` is one run, and trains no student of the earlier commit: it compares with one that an earlier call kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks import budget, judge, material, report
from benchmarks.peers import ROOT, stage_seconds, tail
from stillroom.core.files import digest_json, read_json, write_json
from stillroom.evaluation.intervals import effective_number
from stillroom.models.load import load_teacher
from stillroom.recipe.reading import load_recipe
from stillroom.signals.vocabulary_map import VocabularyMap

RECIPE = ROOT / "recipes" / "quickstart.yaml"
BEFORE = "b8e6c2e7fdb70cdb5ef8aa162132a76de1de9c7f"
LONGEST = 512
QUESTIONS = 20
SNIPPET = 60
"""Characters; a chat is taken as seen in training when such a stretch of its answer is there."""
CALIBRATION_TOKENS = 8192
CLOSE = (0.93, 1.03)
"""Share of the asked CPU seconds that the earlier code's run may take."""
TRIES = 3
HELD_OUT = """
import json, sys
from stillroom.corpus.config import PythonDocsSource
from stillroom.corpus.sources import read_source
from stillroom.corpus.split import split_of
found = {}
for document in read_source(PythonDocsSource(form="chat")):
    if not document.is_empty:
        found.setdefault(document.digest, document)
sides = split_of(list(found), 0.05, 0.1)
for digest in sorted(found):
    if sides[digest] == "heldout":
        sys.stdout.write(json.dumps([dict(message) for message in found[digest].messages]) + "\\n")
"""
"""Run by that commit's code: the chats that its quickstart holds out."""


class NotThere(Exception):
    """The earlier commit cannot be used, and why."""


def run_once(recipe: Path, folder: Path) -> tuple[Path, budget.Spent]:
    """The recipe in a fresh folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command: list[str | Path] = [sys.executable, "-m", "stillroom", "run", recipe, "--runs", folder, "--quiet"]
    spent = budget.run(command, log=folder / "log")
    runs = [path.parent for path in folder.glob("*/summary.json")]
    # Exit code 1 is a quality gate that was missed: the run is whole all the same.
    if spent.returncode not in (0, 1) or not runs:
        raise SystemExit(f"`stillroom run {recipe}` failed with exit code {spent.returncode}: {tail(folder / 'log')}")
    return runs[0], spent


def kept_run(recipe: Path, folder: Path) -> tuple[Path, budget.Spent]:
    """A run that ended here with this code, this recipe and on this machine; one that is made now where there is none."""
    kept = folder / "spent.json"
    asked = digest_json([material.recipe_digest(recipe), report.made_by()])
    if kept.is_file() and (found := read_json(kept))["of"] == asked:
        sys.stderr.write(
            f"{folder} holds a finished run of this code on this machine: it is measured. Remove the folder for a new one.\n"
        )
        return Path(found["run"]), budget.Spent(**found["spent"])
    run, spent = run_once(recipe, folder)
    write_json(kept, {"of": asked, "run": str(run), "spent": dataclasses.asdict(spent)})
    return run, spent


def measured(run: Path, spent: budget.Spent) -> dict[str, Any]:
    """The figures of one run."""
    summary = read_json(run / "summary.json")
    student, baseline = summary["student"], summary.get("baseline")
    sums = read_json(run / "measures" / "fidelity.json")["result"]["sums"]["student"]
    return {
        "cpu_seconds_half": spent.cpu_seconds / 2,
        "wall_seconds": spent.wall_seconds,
        "load": spent.load,
        "parameters_share": student["parameters"] / summary["teacher"]["parameters"],
        "kl_student": student["kl_to_teacher"],
        "kl_student_over_baseline": student["kl_to_teacher"] / baseline["kl_to_teacher"] if baseline else None,
        "top1_agreement": student["top1_agreement"],
        "effective_documents": effective_number(torch.tensor(sums["compared"]).double().numpy()),
        "context_missing_share": context_missing(summary),
        "peak_bytes": spent.peak_bytes,
        "heldout_documents": summary["heldout_documents"],
        "stages": stage_seconds(run),
        "exit_code": spent.returncode,
    }


def context_missing(summary: dict[str, Any]) -> float:
    """The share of learned targets without their context, in the split that has the largest."""
    return max(float(share) for share in summary["context"]["share"].values())


def opened(run: Path, stage: str) -> tuple[Any, Any, VocabularyMap]:
    """A student of a run, its tokenizer and its vocabulary map."""
    from stillroom.models.tokenizer import open_tokenizer

    folder = run / stage / "model"
    return (
        judge.open_model(folder),
        open_tokenizer(folder),
        VocabularyMap.load(run / "shrink" / "vocabulary.safetensors"),
    )


def written(recipe: Any, run: Path) -> dict[str, Any]:
    """Greedy answers of teacher and student to held-out questions, and how many of them repeat themselves."""
    loaded = load_teacher(recipe.teacher, "cpu", torch.float32)
    heldout = judge.chats_of(recipe.corpus, loaded.tokenizer, 1 << 20)["heldout"]
    questions = [chat[0]["content"] for chat in heldout if chat[0]["role"] == "user"][:QUESTIONS]
    whole = VocabularyMap.identity(loaded.model.get_output_embeddings().weight.shape[0])
    answers = {"teacher": judge.answers(loaded.model, loaded.tokenizer, whole, questions)}
    for name, stage in (("student", "distill"), ("baseline", "baseline")):
        if (run / stage / "model").is_dir():
            model, tokenizer, vocabulary = opened(run, stage)
            answers[name] = judge.answers(model, tokenizer, vocabulary, questions)
    # Of all models in the teacher's tokens, so that they are compared by the same measure.
    ids = {name: loaded.tokenizer(texts, add_special_tokens=False).input_ids for name, texts in answers.items()}
    return {
        "questions": questions,
        "answers": answers,
        "degenerate": {name: sum(map(judge.degenerate, rows)) for name, rows in ids.items()},
        "median_length": {name: statistics.median(map(len, rows)) for name, rows in ids.items()},
    }


def _close(runs: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """The runs that took about so many CPU seconds."""
    return [one for one in runs if CLOSE[0] * seconds <= one["cpu_seconds"] <= CLOSE[1] * seconds]


class Before:
    """The code of the earlier commit, and its student at equal CPU seconds.

    Args:
        folder: Keeps both.
        recipe: Another recipe than that commit's own, for a trial.
    """

    def __init__(self, folder: Path, recipe: Path | None = None) -> None:
        self.folder = folder.resolve()
        self.code = self.folder / "code"
        self.recipe = recipe or self.code / "recipes" / "quickstart.yaml"

    def fetch(self) -> None:
        """Take the commit's files out of the history.

        Raises:
            NotThere: The history does not have it.
        """
        if (self.code / "src").is_dir():
            return
        beside = self.folder / "code.partial"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        if shutil.which("git") is None:
            raise NotThere(f"commit {BEFORE[:7]} cannot be taken out of the history: there is no git here")
        archive = subprocess.run(
            ["git", "-C", str(ROOT), "archive", "--format=tar", BEFORE, "src", "recipes"],
            capture_output=True,
            check=False,
        )
        if archive.returncode:
            reason = (archive.stderr.decode(errors="replace").strip().splitlines() or ["git failed"])[-1]
            raise NotThere(
                f"commit {BEFORE[:7]} is not in this checkout's history (a shallow clone, or no .git): {reason}; "
                "fetch the whole history (git fetch --unshallow)"
            )
        subprocess.run(["tar", "-x", "-C", str(beside)], input=archive.stdout, check=True)
        beside.rename(self.code)

    def _python(self) -> Path:
        """A light environment: the commit's code before this environment's packages, for isolated child processes too.

        Raises:
            NotThere: It cannot be made, or another Stillroom would be imported.
        """
        folder = self.folder / "environment"
        python = folder / "bin" / "python"
        if not (folder / "whole").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            made = subprocess.run(
                [sys.executable, "-m", "venv", "--without-pip", str(folder)],
                capture_output=True,
                text=True,
                check=False,
            )
            if made.returncode:
                raise NotThere(f"an environment for its code cannot be made: {tail_of(made)}")
            packages = next(folder.glob("lib/python*/site-packages"))
            shared = [path for path in sys.path if Path(path).name == "site-packages"]
            (packages / "a_code.pth").write_text(f"{self.code / 'src'}\n", encoding="utf-8")
            (packages / "b_shared.pth").write_text("".join(f"{path}\n" for path in shared), encoding="utf-8")
            (folder / "whole").touch()
        asked = [str(python), "-I", "-c", "import stillroom; print(stillroom.__file__)"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotThere(f"its code does not run here: {tail_of(done)}")
        if not Path(done.stdout.strip()).is_relative_to(self.code):
            raise NotThere(
                f"in its environment the package is imported from {done.stdout.strip()}, not from {self.code}"
            )
        return python

    def chats(self) -> list[judge.Chat]:
        """Every chat that it holds out."""
        done = subprocess.run(
            [str(self._python()), "-c", HELD_OUT],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise NotThere(f"its code does not run here: {tail_of(done)}")
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    def _run(self, name: str, tokens: int) -> tuple[Path, budget.Spent]:
        recipe = yaml.safe_load(self.recipe.read_text(encoding="utf-8")) | {"name": name}
        recipe["corpus"] |= {"train_tokens": tokens}
        runs = self.folder / "runs"
        shutil.rmtree(runs / name, ignore_errors=True)
        runs.mkdir(parents=True, exist_ok=True)
        file = runs / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        log = runs / f"{name}.log"
        command: list[str | Path] = [self._python(), "-m", "stillroom", "run", file, "--runs", runs, "--quiet"]
        spent = budget.run(command, {"PYTHONPATH": ""}, log=log)
        if spent.returncode not in (0, 1) or not (runs / name / "summary.json").is_file():
            raise NotThere(f"its run failed with exit code {spent.returncode}: {tail(log)}")
        return runs / name, spent

    def student(self, seconds: float, *, make: bool = True) -> tuple[Path, dict[str, Any]]:
        """Its run whose command takes so many CPU seconds; made once, and used again while it is close to them.

        Args:
            seconds: CPU seconds of our command.
            make: Whether one is trained where none is kept.

        Raises:
            NotThere: It cannot be had.
        """
        kept = self.folder / "before.json"
        facts: dict[str, Any] = read_json(kept) if kept.is_file() else {}
        if facts.get("of") != (asked := self.identity()):
            facts = {"of": asked, "runs": []}
        runs: list[dict[str, Any]] = facts["runs"]
        trained = 0
        while not (close := _close(runs, seconds)) and make and trained <= TRIES:
            tokens = self._tokens(runs, seconds)
            if tokens in (one["tokens"] for one in runs):
                break
            trained += 1
            folder, spent = self._run(f"before-{tokens}", tokens)
            runs.append(
                {
                    "folder": str(folder),
                    "tokens": tokens,
                    "cpu_seconds": spent.cpu_seconds,
                    "wall_seconds": spent.wall_seconds,
                    "load": spent.load,
                    "stages": stage_seconds(folder),
                }
            )
            write_json(kept, facts)
        if close:
            best = min(close, key=lambda one: abs(one["cpu_seconds"] - seconds))
            return Path(best["folder"]), best
        most = max(runs, key=lambda one: one["tokens"], default=None)
        if most is not None and most["tokens"] == self._whole() and most["cpu_seconds"] < CLOSE[0] * seconds:
            # Its recipe has no use for more: all of its tokens take fewer CPU seconds.
            return Path(most["folder"]), most
        if not make:
            raise NotThere(
                "no student of it at equal CPU seconds is kept, and none is trained with --quick: run without it once"
            )
        tried = ", ".join(f"{one['cpu_seconds']:.0f} with {one['tokens']:,} tokens" for one in runs)
        raise NotThere(f"none of its runs is close to our {seconds:.0f} CPU seconds; they took {tried}")

    def identity(self) -> str:
        """A digest of what its runs depend on besides their tokens: its code is always the same."""
        return digest_json([material.recipe_digest(self.recipe), report.made_by() | {"code": BEFORE}])

    def _whole(self) -> int:
        """Training tokens of its recipe, uncut."""
        whole: int = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))["corpus"]["train_tokens"]
        return whole

    def _tokens(self, runs: list[dict[str, Any]], seconds: float) -> int:
        """How many training tokens are tried next."""
        length = 512
        if not runs:
            return CALIBRATION_TOKENS
        if len(runs) == 1:
            first = runs[0]
            linear = ("capture", "distill", "baseline")
            cost = budget.Cost.of(first["cpu_seconds"], first["stages"], linear, first["tokens"])
        else:
            near = sorted(runs, key=lambda one: abs(one["cpu_seconds"] - seconds))[:2]
            cost = budget.Cost.through(*((one["tokens"], one["cpu_seconds"]) for one in near))
        return min(cost.tokens(seconds, length), self._whole())


def tail_of(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a failed command wrote to standard error."""
    return (done.stderr.strip().splitlines() or ["no reason"])[-1]


def unseen(chats: list[judge.Chat], run: Path, tokenizer: Any) -> list[judge.Chat]:
    """The chats of which a run's training text has no stretch of the answer."""
    from safetensors import safe_open

    text = ""
    for path in sorted((run / "corpus").glob("train*.safetensors")):
        with safe_open(path, "pt") as file:
            rows = file.get_tensor("ids")
            for row in rows if rows.ndim > 1 else rows[None]:
                text += " ".join(str(tokenizer.decode(row.tolist(), skip_special_tokens=True)).split()) + "\n"
    if not text:
        raise NotThere(f"{run / 'corpus'} has no training text that this benchmark can read")

    def seen(chat: judge.Chat) -> bool:
        answer = " ".join(chat[-1]["content"].split())
        starts = (0, max(0, len(answer) // 2 - SNIPPET // 2), max(0, len(answer) - SNIPPET))
        return any(answer[start : start + SNIPPET] in text for start in starts)

    return [chat for chat in chats if not seen(chat)]


def against_before(
    recipe: Any, run: Path, seconds: float, before: Before, *, make: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and details of the fixed second set."""
    from stillroom.corpus.documents import Document

    names = ("kl_over_before", "kl_over_before_interval", "agreement_gain_points", "agreement_gain_points_interval")
    figures: dict[str, Any] = dict.fromkeys(names)
    try:
        before.fetch()
        made, facts = before.student(seconds, make=make)
        loaded = load_teacher(recipe.teacher, "cpu", torch.float32)
        chats = before.chats()
        fits = judge.within([Document("", chat) for chat in chats], loaded.tokenizer, LONGEST)
        whole = [chat for chat, short in zip(chats, fits, strict=True) if short]
        fresh = unseen(whole, run, loaded.tokenizer)
        if len(fresh) < 10:
            raise NotThere(
                f"{len(fresh)} of its {len(whole)} whole held-out chats were not trained on: too few to tell"
            )
    except NotThere as error:
        return figures, {"not_measured": str(error)}
    students = {}
    for name, folder in (("now", run), ("before", made)):
        model, _, vocabulary = opened(folder, "distill")
        students[name] = model, vocabulary
    found = judge.judge(loaded.model, loaded.tokenizer, students, fresh)
    ratio, gain = judge.kl_ratio(found["now"], found["before"]), judge.agreement_gain(found["now"], found["before"])
    figures = {
        "kl_over_before": ratio.value,
        "kl_over_before_interval": [ratio.low, ratio.high],
        "agreement_gain_points": gain.value,
        "agreement_gain_points_interval": [gain.low, gain.high],
    }
    details = {
        "commit": BEFORE,
        "chats_held_out": len(chats),
        "chats_whole": len(whole),
        "longest_tokens": LONGEST,
        "chats_trained_on_and_left_out": len(whole) - len(fresh),
        "effective_documents": effective_number(found["now"].positions),
        "cpu_seconds": {"now": seconds, "before": facts["cpu_seconds"]},
        "before": facts,
        "students": {name: one.as_dict() for name, one in found.items()},
        "ids": {name: vocabulary.student_used for name, (_, vocabulary) in students.items()},
    }
    return figures, details


def median(values: list[Any]) -> float | None:
    """The median of what is known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="one run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="the quickstart's if not given")
    parser.add_argument("--before-recipe", type=Path, help="in place of the earlier commit's own, for a trial")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "quickstart", help="folder that keeps what is done"
    )
    options = parser.parse_args()
    torch.set_num_threads(budget.THREADS)
    torch.manual_seed(0)
    recipe = load_recipe(options.recipe)
    runs = []
    for number in range(1 if options.quick else options.runs):
        folder, spent = kept_run(options.recipe.resolve(), (options.work / f"run{number}").resolve())
        runs.append(measured(folder, spent))
        sys.stderr.write(f"run {number}: {spent.cpu_seconds:.0f} CPU seconds, KL {runs[-1]['kl_student']:.4f}\n")
    said = written(recipe, folder)
    seconds = statistics.median(one["cpu_seconds_half"] for one in runs) * 2
    before = Before(options.work / "before", options.before_recipe)
    ratio, details = against_before(recipe, folder, seconds, before, make=not options.quick)
    apart = ("stages", "exit_code", "load", "heldout_documents")
    figures = {name: median([one[name] for one in runs]) for name in runs[0] if name not in apart}
    figures |= {
        "answers_degenerate_over_teacher": said["degenerate"]["student"] - said["degenerate"]["teacher"],
        "median_length": said["median_length"]["student"],
        "median_length_over_teacher": said["median_length"]["student"] / max(1, said["median_length"]["teacher"]),
        **ratio,
    }
    report.write(
        figures, {"runs": runs, "written": said, "second_set": details, "threads": budget.THREADS}, options.json
    )


if __name__ == "__main__":
    main()
