"""Answers of student and baseline for a reader who does not know which is whose.

    .venv/bin/python -m benchmarks.blind runs/quickstart                    # writes blind/pairs.txt and blind/key.json
    .venv/bin/python -m benchmarks.blind runs/quickstart --choices FILE --json FILE     # counts what the reader chose

`pairs.txt` has each prompt with answers A and B in an order drawn by chance. The reader writes a line for each pair: its
number, and `A`, `B` or `=`. `key.json` is for counting. Pairs of equal answers are left out, and counted. The answers are those
of the metric `samples`: measure it first (`stillroom evaluate RUN --only samples`).

`student_preferred_share` is of the pairs in which one was preferred, with Wilson's 95 % interval and the sign test's p-value;
null where none was. A folder with a key is not written again: choices that were made by it would be counted by another.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import sys
from pathlib import Path
from typing import Any

from benchmarks import report
from stillroom.core import files
from stillroom.evaluation.paired import share, sign_test

PAIR = ("student", "baseline")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("--out", type=Path, help="folder for the two files; blind/ in the run's folder without it")
    parser.add_argument("--choices", type=Path, help="the reader's choices, to count them by key.json")
    parser.add_argument("--json", type=Path, help="with --choices: a file for the counts")
    arguments = parser.parse_args()
    folder = arguments.out or arguments.run / "blind"
    if arguments.choices is not None:
        if not (folder / "key.json").is_file():
            raise SystemExit(
                f"{folder / 'key.json'} is missing: write the pairs first, by the same command without --choices."
            )
        key = json.loads((folder / "key.json").read_text(encoding="utf-8"))
        counts = count(arguments.choices.read_text(encoding="utf-8"), key)
        report.write(figures_of(counts), {"counts": counts, "pairs": len(key["pairs"])}, arguments.json)
        return
    if (folder / "key.json").exists():
        raise SystemExit(f"{folder / 'key.json'} is there: choices are counted by it. Name another folder as --out.")
    pairs, key = shuffled(answers_of(arguments.run), random.Random(secrets.randbits(64)))
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "pairs.txt", pairs)
    files.write_json(folder / "key.json", key)
    sys.stdout.write(f"For the reader: {folder / 'pairs.txt'}\nFor counting:   {folder / 'key.json'}\n")


def answers_of(run: Path) -> list[dict[str, Any]]:
    """Prompts of a run's metric `samples`, each with its answers by model.

    Raises:
        SystemExit: It was not measured, or the run has no baseline.
    """
    path = run / "measures" / "samples.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing. Measure it: stillroom evaluate {run} --only samples")
    items: list[dict[str, Any]] = files.read_json(path)["result"]["items"]
    if not items or not all(name in items[0]["answers"] for name in PAIR):
        raise SystemExit(f"{path} has no answers of {' and '.join(PAIR)}: the recipe needs `baseline: true`.")
    return items


def shuffled(items: list[dict[str, Any]], chance: random.Random) -> tuple[str, dict[str, Any]]:
    """The reader's text, and the key: whose A and B are, by number."""
    order = [item for item in items if len({item["answers"][name]["text"].strip() for name in PAIR}) > 1]
    chance.shuffle(order)
    parts = [
        "Which answer would you rather have? Write a line for each pair: its number, and A, B or = (no difference).\n"
    ]
    key: dict[str, dict[str, str]] = {}
    for number, item in enumerate(order, 1):
        names = list(PAIR)
        chance.shuffle(names)
        key[str(number)] = dict(zip("AB", names, strict=True))
        parts.append(f"{'=' * 78}\n{number}. {'Question' if item['chat'] else 'Go on'}: {item['prompt']}\n")
        for letter, name in zip("AB", names, strict=True):
            text = item["answers"][name]["text"].strip() or "(nothing)"
            parts.append(f"--- {number} {letter} {'-' * 40}\n{text}\n")
    return "\n".join(parts), {"pairs": key, "equal": len(items) - len(order)}


def count(choices: str, key: dict[str, Any]) -> dict[str, int]:
    """How often each model was chosen.

    Raises:
        SystemExit: A line is not a number of a pair and A, B or =, or a pair has two lines.
    """
    found = dict.fromkeys((*PAIR, "no difference"), 0)
    seen: set[str] = set()
    for number, line in enumerate(choices.splitlines(), 1):
        words = line.replace(".", " ").split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in key["pairs"] or words[1].upper() not in ("A", "B", "="):
            raise SystemExit(f"line {number}: {line!r} is not the number of a pair and A, B or =, such as `3 B`.")
        if words[0] in seen:
            raise SystemExit(f"line {number}: pair {words[0]} was chosen before.")
        seen.add(words[0])
        found[key["pairs"][words[0]].get(words[1].upper(), "no difference")] += 1
    return found | {"equal answers, not shown": key["equal"], "not chosen": len(key["pairs"]) - len(seen)}


def figures_of(counts: dict[str, int]) -> dict[str, Any]:
    """The share of pairs in which the student was preferred, of those in which one was."""
    student, baseline = (counts[name] for name in PAIR)
    found = share(student, student + baseline)
    return {
        "student_preferred_share": found["value"],
        "student_preferred_share_interval": found["interval"],
        "sign_test_p_value": sign_test(student, baseline),
        "student_preferred": student,
        "baseline_preferred": baseline,
        "no_difference": counts["no difference"],
    }


if __name__ == "__main__":
    main()
