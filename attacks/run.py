"""Runs every attack in one process: ``.venv/bin/python -m attacks.run [NAME …]``.

One line an attack, and at the end ``N attacks refused, M succeeded``. Exit code 1 when any succeeded.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time
from pathlib import Path

from attacks.case import Attack

NOT_ATTACKS = ("case", "run", "workshop")
"""Modules of this folder that help the others."""


def all_attacks() -> dict[str, Attack]:
    """Every attack by the name of its file, in alphabetical order. A file without an attack is an error."""
    found: dict[str, Attack] = {}
    for module in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda item: item.name):
        if module.name in NOT_ATTACKS or module.name.startswith("_"):
            continue
        found[module.name] = importlib.import_module(f"attacks.{module.name}").ATTACK
    return found


def main(names: list[str]) -> int:
    """Run the attacks named, or all; returns the exit code."""
    attacks = all_attacks()
    unknown = sorted(set(names) - attacks.keys())
    if unknown:
        print(f"no such attack: {', '.join(unknown)}")
        return 2
    refused = succeeded = 0
    started = time.monotonic()
    for name in names or attacks:
        outcome = attacks[name].run()
        refused += outcome.refused
        succeeded += not outcome.refused
        print(f"{'refused ' if outcome.refused else 'FAILED  '} {name:<36} {outcome.words}", flush=True)
    print(f"in {time.monotonic() - started:.1f} s")
    print(f"{refused} attacks refused, {succeeded} succeeded")
    return 1 if succeeded else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
