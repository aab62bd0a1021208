"""Writes docs/benchmarks/gpu.md from what part1.sh and part2.sh found.

    .venv/bin/python -m tools.gpu.report [part1.json part2.json]

Files that are named are kept beside the page first (docs/benchmarks/gpu-part1.json and gpu-part2.json); without any, the
page is written again from those. A dry run is refused: it says nothing about a card.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "gpu.md"
PARTS = ("part1", "part2")
HEAD = """# On a GPU

`make gpu-pack` packs what travels; `bash tools/gpu/part1.sh` and `bash tools/gpu/part2.sh` run on the machine with the card,
each at most ten minutes; `python -m tools.gpu.report part1.json part2.json` writes this page. A dry run of both on the
CPU is part of the tests: it shows that the programs run, not what a card does.

Part 1 compares a training step with transformers' own, with Liger's kernels (they travel) and with a live teacher's whole
logits, as TRL's trainer has it. TRL itself does not travel: the libraries that it imports fill a trip. How often the CPU waits
for the card in a step, and FSDP2 with one process, are checks of their own.
"""
NOTHING = """
**No run yet: no card was at hand.** Nothing about speed on a GPU is claimed, here or on any other page; memory is computed, not
measured.
"""


MEMORY = """
## Memory of one 80 GB card

A teacher of 8.2 billion parameters (the shape of Qwen3 8B, 151,936 ids) to a student of 4.0 billion, sequences of 2,048 tokens,
without a GPU: *planned* is the arithmetic of `stillroom plan`, *counted* is the sum of all live tensors while the stages' own
functions run on a card that holds shapes only (`python -m tools.gpu.memory`). Neither has been compared with a real card yet;
5 % of a card's memory is left for its context, libraries and gaps between blocks. `corpus` and `export` put nothing on the
card.

| stage | planned, GB | counted, GB | what is in it |
|---|---|---|---|
"""
CONTENTS = {
    "capture": "teacher in bfloat16, 65,536 tokens a forward pass, the draw",
    "shrink": "teacher in 16 bits, as its files are, with the layer at hand in float32; the student before and after its "
    "repair in float32; least squares in float64",
    "distill": "`state: 12`, gradient checkpointing, micro-batches of 8,192 tokens",
    "evaluate": "teacher and one student in float32 (with a second student, about 16 GB more)",
    "entropy": "what `distill` begins with where the vocabulary is trimmed: teacher in bfloat16, 65,536 tokens a forward pass, "
    "its distributions over the student's ids",
    "original": "what `evaluate` begins with where the teacher is quantized: its original and then the teacher, each in "
    "float32 over a row",
}
"""What each stage holds."""


def memory() -> str:
    """The table of what `tools.gpu.memory` counted; empty before it did."""
    path = PAGE.with_name("gpu-memory.json")
    if not path.is_file():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        f"| `{name}` | {found['planned'][name] / 1e9:.1f} | {counted / 1e9:.1f} | {CONTENTS[name]} |\n"
        for name, counted in found["counted"].items()
    ]
    return MEMORY + "".join(rows)


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, from the results by part.

    Raises:
        ValueError: A result is a dry run's, or not a result.
    """
    parts = [HEAD]
    if not results:
        parts.append(NOTHING)
    for part in PARTS:
        if part not in results:
            if results:
                parts.append(f"\n## {part}\n\nNot run.\n")
            continue
        result = results[part]
        machine = result.get("machine") or {}
        if result.get("tiny") or result.get("device") == "cpu" or "card" not in machine:
            raise ValueError(f"{part} is a dry run, or names no card: it says nothing about a GPU")
        words = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "card")
        parts.append(f"\n## {part}: {machine['card']}\n\n{words}.\n")
        for name, row in result["checks"].items():
            if name == "machine":
                continue
            ended = "" if row["ended"] == "whole" else f" **{row['ended']}**"
            parts.append(f"\n### {name}\n\n{row['seconds']:.0f} s.{ended}{_error(row)}\n")
            if row["findings"]:
                parts.append("\n| what | found | bar | |\n|---|---|---|---|\n")
                parts += [_line(one) for one in row["findings"]]
    return "".join([*parts, memory()])


def _error(row: Mapping[str, Any]) -> str:
    return f" `{_cell(row['error'])}`" if "error" in row else ""


def _line(one: Mapping[str, Any]) -> str:
    bars = [f"≥ {one['least']:g}"] if one.get("least") is not None else []
    bars += [f"≤ {one['most']:g}"] if one.get("most") is not None else []
    verdict = {True: "ok", False: "**failed**", None: ""}[one.get("ok")]
    return f"| {_cell(one['name'])} | {_cell(_number(one['value']))} | {' and '.join(bars)} | {verdict} |\n"


def _number(value: object) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("`", "'").replace("\n", " ")


def kept() -> dict[str, Any]:
    """Results that stand beside the page."""
    paths = {part: PAGE.with_name(f"gpu-{part}.json") for part in PARTS}
    return {part: json.loads(path.read_text(encoding="utf-8")) for part, path in paths.items() if path.is_file()}


def main() -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", help="part1.json and part2.json of a run")
    options = parser.parse_args()
    results = kept()
    try:
        for path in options.files:
            result = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(result, dict) or result.get("part") not in PARTS:
                raise ValueError(f"{path} is not a result of part1.sh or part2.sh")
            results[result["part"]] = result
        text = page(results)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"gpu report: {error}\n")
        return 1
    for part, result in results.items():
        target = PAGE.with_name(f"gpu-{part}.json")
        target.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
