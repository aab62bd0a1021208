"""Runs every attack in one process: ``.venv/bin/python -m attacks.run [NAME …]``.

NAME is a file (``symlink_file``), a kind and a file (``package/symlink_file``), a kind (``package``), or the name that the
file had in 0.1.0 (``import_pipe``). One line an attack, and at the end ``N attacks refused, M succeeded``. Exit code 1 when
any succeeded, 2 when a name is none.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from attacks.case import Attack

ROOT = Path(__file__).parent
KINDS = tuple(sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))
"""The folders: one for each kind of attack."""
PREFIXES = {"imports": "import_", "race": "race_", "templates": "template_", "terms": "terms_"}
"""What the names of 0.1.0 began with, when all files lay in one folder."""


def all_attacks() -> dict[str, Attack]:
    """Every attack by its kind and name (``package/symlink_file``), in order. A file without an attack is an error."""
    found: dict[str, Attack] = {}
    for kind in KINDS:
        for module in sorted(pkgutil.iter_modules([str(ROOT / kind)]), key=lambda item: item.name):
            if module.name.startswith("_"):
                continue
            made = importlib.import_module(f"attacks.{kind}.{module.name}")
            if hasattr(made, "ATTACKS"):
                # One attack in many variants, each of which counts and runs by itself.
                found |= {f"{kind}/{module.name}/{variant}": attack for variant, attack in made.ATTACKS.items()}
                continue
            attack = made.ATTACK
            # `import` is a word of Python's: the file has an underscore more.
            found[f"{kind}/{module.name.rstrip('_')}"] = attack
    return found


def find(word: str, attacks: Mapping[str, Attack]) -> list[str]:
    """The attacks that a word of the command line means.

    Raises:
        LookupError: None has this name, or several have; says which.
    """
    if word in attacks:
        return [word]
    if word in KINDS:
        return [name for name in attacks if name.startswith(f"{word}/")]
    earlier = [name for name in attacks if earlier_name(name) == word]
    variants = [name for name in attacks if name.startswith(f"{word}/")]
    if variants:
        return variants
    same = [name for name in attacks if name.partition("/")[2] == word]
    found = earlier or same
    if len(found) != 1:
        raise LookupError(f"{word} is one of {', '.join(same)}: say which" if same else f"no such attack: {word}")
    return found


def earlier_name(name: str) -> str:
    """The name of an attack in 0.1.0."""
    kind, _, file = name.partition("/")
    return PREFIXES.get(kind, "") + file


def main(words: list[str]) -> int:
    """Run the attacks named, or all; returns the exit code."""
    attacks = all_attacks()
    try:
        names = [name for word in words for name in find(word, attacks)] or list(attacks)
    except LookupError as error:
        print(error.args[0])
        return 2
    refused = succeeded = 0
    started = time.monotonic()
    for name in names:
        outcome = attacks[name].run()
        refused += outcome.refused
        succeeded += not outcome.refused
        print(f"{'refused ' if outcome.refused else 'FAILED  '} {name:<40} {outcome.words}", flush=True)
    print(f"in {time.monotonic() - started:.1f} s")
    print(f"{refused} attacks refused, {succeeded} succeeded")
    return 1 if succeeded else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
