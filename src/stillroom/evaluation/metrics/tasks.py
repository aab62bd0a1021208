"""Problems with checked answers: teacher, baseline and student on the same problems."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stillroom.core import files
from stillroom.core.errors import RecipeError
from stillroom.core.extras import version_of
from stillroom.core.sandbox.programs import Limits, require_sandbox, run_program, settled
from stillroom.evaluation.answers import Speaker
from stillroom.evaluation.bench import Bench
from stillroom.evaluation.metric import Beside, Metric, Result
from stillroom.evaluation.paired import mcnemar, paired_difference, paired_share, share
from stillroom.evaluation.sections import CardResult, Section, Table, Text
from stillroom.evaluation.tally import Drawing
from stillroom.evaluation.tasks.items import Item, Task, choose, is_exact
from stillroom.evaluation.tasks.packages import package_task
from stillroom.evaluation.tasks.task_files import read_task
from stillroom.evaluation.words import interval, paired_test, percent
from stillroom.recipe.evaluation import TasksConfig
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.task_data import files_of

VERSION = 2
SIGNIFICANT = 0.05


def measure_tasks(bench: Bench) -> dict[str, Any]:
    """Every task of the recipe. What one model answered to one task is kept as soon as it is there."""
    tasks = _tasks(bench.config.tasks, bench.seed)
    # One model after the other, so that each is loaded once.
    done = bench.of_each(lambda name: [_answers(bench, task, name) for task in tasks])
    found: dict[str, Any] = {}
    for number, task in enumerate(tasks):
        by_model = {name: answers[number] for name, answers in done.items()}
        made = _harness(bench, by_model) if isinstance(task, str) else {task.name: _one(bench, task, by_model)}
        if twice := found.keys() & made.keys():
            raise _two_of(min(twice))
        found |= made
    bounds = {}
    for name, entry in found.items():
        student = entry["models"]["student"]
        bounds[name] = [student["value"], *(student["interval"] or [None, None])]
    return {
        "tasks": found,
        "interval": f"{percent(bench.config.confidence)} Wilson over items (bits per byte: Student's by effective items)",
        "bounds": bounds,
        "warnings": [
            f"{entry['cut']} prompts of the task `{name}` did not fit the student's context and lost their beginning."
            for name, entry in found.items()
            if entry.get("cut")
        ],
    }


def _tasks(config: TasksConfig, seed: int) -> list[Task | str]:
    """The tasks that are asked; those of lm-evaluation-harness by their names.

    Raises:
        MissingDependency: A package is not installed.
        RecipeError: A task is not there, is not as it should be, or two have one name.
    """
    tasks: list[Task | str] = [read_task(path, config.items) for path in config.files]
    tasks += [package_task(name, config.items, seed) or name for name in config.names]
    names = [task if isinstance(task, str) else task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise _two_of(name)
    if any(isinstance(task, Task) and task.kind == "code" for task in tasks):
        require_sandbox()
    if any(isinstance(task, str) for task in tasks):
        from stillroom.evaluation.tasks.harness import require_names

        require_names([task for task in tasks if isinstance(task, str)], config.include_path)
    return tasks


def _two_of(name: str) -> RecipeError:
    return RecipeError(
        f"`evaluate.tasks`: two tasks are called `{name}`; the result of one would be lost.",
        "Rename one of them (`task:` in its file), or ask it once.",
    )


def require(recipe: Recipe) -> None:
    """Refuse tasks that cannot be asked. Errors as in :func:`_tasks`."""
    _tasks(recipe.evaluate.tasks, recipe.public_seed)


def answer_task(speaker: Speaker, task: Task, bench: Bench, called: str) -> list[dict[str, Any]]:
    """What one model does with every problem: ``right`` and what it wrote or chose, or ``nats`` and ``bytes``.

    Progress calls the model ``called``.
    """
    config = bench.config.tasks
    with bench.progress.task(f"{task.name} {called}", total=len(task.items), unit="items") as drawn:
        if task.kind == "rolling":
            rows = []
            for item in task.items:
                rows.append({"nats": -speaker.rolling(item.prompt), "bytes": len(item.prompt.encode())})
                drawn.advance(1)
            return rows
        if task.kind == "choice":
            return _choices(speaker, task, drawn.advance)
        prompts = [_prompt(speaker, item) for item in task.items]
        written = speaker.write(prompts, task.max_tokens or config.max_tokens, task.stops, drawn.advance)
    limits = Limits(config.code_seconds, config.code_memory_bytes)
    return [
        {"right": _judge(task, item, answer.text, limits), "answer": answer.text[:400]} | ({"cut": True} if cut else {})
        for item, answer, cut in zip(task.items, written, speaker.cut, strict=True)
    ]


def compare_answers(answers: dict[str, list[dict[str, Any]]], confidence: float) -> dict[str, Any]:
    """Shares and McNemar's test of the student against teacher and baseline."""
    right = {name: [bool(row["right"]) for row in rows] for name, rows in answers.items()}
    compared = {}
    for other in right:
        if other != "student":
            test = mcnemar(right["student"], right[other])
            compared[f"student_minus_{other}"] = test | {
                "interval": paired_share(right["student"], right[other], confidence)
            }
    return {
        "models": {name: share(sum(rows), len(rows), confidence) for name, rows in right.items()},
        "compared": compared,
        "right": {name: [int(value) for value in rows] for name, rows in right.items()},
    }


def _answers(bench: Bench, task: Task | str, name: str) -> Any:
    """What a model makes of a task: a row of each problem; of one of lm-evaluation-harness, given by its name, what that
    returns of each task it stands for.
    """
    config = bench.config.tasks
    inputs: dict[str, Any] = {"model": bench.subjects[name].digest}
    if isinstance(task, str):
        from stillroom.evaluation.tasks.harness import folder_digest, run_task

        # Its tasks and how it evaluates them are its version's.
        inputs["harness"] = version_of("lm-eval")
        include = folder_digest(config.include_path) if config.include_path else None
        inputs |= {"items": config.items, "seed": bench.seed, "version": VERSION, "include": include}

        def compute() -> Any:
            return run_task(task, Speaker(bench.load(name)), config.items, bench.seed, config.include_path)

        return bench.part("tasks", f"{task} {name}", inputs, compute)
    settings = [config.model_dump(mode="json", exclude={"names", "files", "include_path"}), VERSION]
    inputs |= {"task": task.digest, "settings": files.digest_json(settings)}
    return bench.part(
        "tasks", f"{task.name} {name}", inputs, lambda: answer_task(Speaker(bench.load(name)), task, bench, name)
    )


def _one(bench: Bench, task: Task, answers: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    about = {"kind": task.kind, "source": task.source, "items": len(task.items), "digest": task.digest}
    if cut := sum(bool(row.get("cut")) for row in answers["student"]):
        about["cut"] = cut
    if task.kind == "rolling":
        return about | _bits(answers, Drawing(bench.config.bootstrap_samples, bench.config.confidence, bench.seed))
    about["chance"] = task.chance
    examples = [
        {"item": index, **{name: rows[index].get("answer", "") for name, rows in answers.items()}}
        for index in range(min(2, len(task.items)))
    ]
    return about | compare_answers(answers, bench.config.confidence) | {"examples": examples}


def _bits(answers: dict[str, list[dict[str, Any]]], drawing: Drawing) -> dict[str, Any]:
    """Bits a byte of every model, and the student's paired with the others'."""
    sizes = np.asarray([row["bytes"] for row in answers["student"]], dtype=np.float64)
    bits = {
        name: np.asarray([row["nats"] for row in rows], dtype=np.float64) / math.log(2)
        for name, rows in answers.items()
    }
    models = {}
    for name, values in bits.items():
        estimate = drawing.estimate(values, sizes)
        models[name] = {"value": estimate.value, "interval": estimate.interval, "items": len(sizes)} | {
            "effective_items": round(estimate.effective, 2),
            "enough": estimate.enough,
        }
    compared = {}
    for name in bits:
        if name != "student":
            test = paired_difference(bits["student"], bits[name], sizes, drawing.confidence, less=True)
            bounds = None if test["low"] is None else [test["low"], test["high"]]
            compared[f"student_minus_{name}"] = {"difference": test.pop("value"), "interval": bounds} | test
    return {"models": models, "compared": compared}


def _harness(bench: Bench, by_model: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A task of lm-evaluation-harness; one name may stand for several tasks."""
    found = {}
    for task in by_model["student"]:
        answers = {model: results[task]["items"] for model, results in by_model.items()}
        about = {
            "kind": by_model["student"][task]["metric"],
            "source": "lm-evaluation-harness",
            "items": len(answers["student"]),
            "digest": by_model["student"][task]["digest"],
        }
        if cut := by_model["student"][task].get("cut"):
            about["cut"] = cut
        found[task] = about | compare_answers(answers, bench.config.confidence)
    return found


def _choices(speaker: Speaker, task: Task, advance: Any) -> list[dict[str, Any]]:
    pairs = [(_prompt(speaker, item), choice) for item in task.items for choice in item.choices]
    scores, cuts = iter(speaker.log_likelihoods(pairs)), iter(speaker.cut)
    rows = []
    for item in task.items:
        mine = [next(scores)[0] for _ in item.choices]
        cut = sum([next(cuts) for _ in item.choices]) > 0
        picked = choose(mine, item.choices, task.by_length)
        row = {"right": picked == item.right, "answer": item.choices[picked].strip(), "scores": mine}
        rows.append(row | ({"cut": True} if cut else {}))
        advance(1)
    return rows


def _prompt(speaker: Speaker, item: Item) -> str:
    return speaker.prompt(list(item.messages)) if item.messages else item.prompt


def _judge(task: Task, item: Item, answer: str, limits: Limits) -> bool:
    if task.kind == "code":
        before, _, checks = item.test.partition("{answer}")
        return run_program(before + answer, limits, checks, settled(before)) == "passed"
    if task.kind == "check" and item.check is not None:
        return bool(item.check(answer))
    return is_exact(answer, item.right if isinstance(item.right, tuple) else (), task)


def extra_inputs(bench: Bench) -> dict[str, Any]:
    """The content of task files and their data, and of the harness's folder."""
    config = bench.config.tasks
    read = [part for path in config.files for part in files_of(path)]
    found: dict[str, Any] = {"files": [files.digest_file(path) for path in read if path.is_file()]}
    if config.include_path is not None:
        from stillroom.evaluation.tasks.harness import folder_digest

        found["include"] = folder_digest(config.include_path)
    return found


def summary(result: Result) -> Result:
    """The result without single items."""
    found = {key: value for key, value in result.items() if key != "bounds"}
    found["tasks"] = {
        name: {key: value for key, value in task.items() if key not in ("right", "examples")}
        for name, task in result["tasks"].items()
    }
    return found


def weaknesses(result: Result) -> list[str]:
    """Tasks at which the student is worse than its teacher beyond chance."""
    found = []
    for name, entry in result["tasks"].items():
        test = entry["compared"]["student_minus_teacher"]
        if test["difference"] < 0 and test.get("p_value", 1.0) < SIGNIFICANT:
            found.append(f"Worse than its teacher at {name}: {paired_test(test)}.")
    return found


def card(result: Result) -> list[CardResult]:
    """The number of each task."""
    found = []
    for name, entry in result["tasks"].items():
        kind, title = (
            ("bits_per_byte", "bits per byte") if entry["kind"] == "rolling" else ("accuracy", "share of items right")
        )
        found.append(CardResult(name, name, kind, title, entry["models"]["student"]["value"]))
    return found


def beside(result: Result, key: str) -> Beside:
    """The same task."""
    entry = result["tasks"][key]
    teacher, baseline = (entry["models"].get(model, {}).get("value") for model in ("teacher", "baseline"))
    return Beside(teacher, baseline, entry["compared"].get("student_minus_teacher", {}).get("p_value"))


def sections(result: Result) -> list[Section]:
    """Teacher, baseline and student side by side, with McNemar's test."""
    rows = []
    for name, entry in result["tasks"].items():
        chance = entry.get("chance")
        cells = ["–" if chance is None else percent(chance)]
        for model in ("teacher", "baseline", "student"):
            found = entry["models"].get(model)
            if found is None:
                cells.append("–")
            elif entry["kind"] == "rolling":
                cells.append(interval(found["value"], found["interval"]) + " bits")
            else:
                cells.append(interval(found["value"], found["interval"], 1, 100, " %"))
        cells += [paired_test(entry["compared"].get(f"student_minus_{other}")) for other in ("teacher", "baseline")]
        rows.append([f"{name} ({entry['items']})", *cells])
    head = [
        "task (items)",
        "chance",
        "teacher",
        "baseline",
        "student",
        "student against teacher",
        "student against baseline",
    ]
    note = (
        f"{result['interval']}. “Won” and “lost” count the items that one of the two alone gets right; p is McNemar's "
        "(mid-p, two-sided). Chance: what is right without reading the problem, by guessing among choices or by never "
        "calling a function."
    )
    return [
        Section(
            "tasks",
            "Tasks",
            [
                Text(
                    f"{result['interval']}; p is McNemar's (mid-p, two-sided). Chance: what is right without reading the "
                    "problem.",
                    page=False,
                ),
                Table(head, rows),
                Text(note, note=True, card=False),
            ],
        )
    ]


METRIC = Metric(
    name="tasks",
    function=measure_tasks,
    what="problems with checked answers",
    settings=("tasks",),
    version=VERSION,
    order=40,
    require=require,
    extra_inputs=extra_inputs,
    summary=summary,
    sections=sections,
    weaknesses=weaknesses,
    card=card,
    beside=beside,
)
