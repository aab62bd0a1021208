"""Aliases in a recipe stand for a thousand million values."""

from __future__ import annotations

from pathlib import Path

from attacks._model import works_terms
from attacks.case import Attack
from stillroom.recipe.reading import parse_recipe


def _attack(_: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        bomb += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    parse_recipe(bomb)


ATTACK = Attack(threat="terms", says="aliases stand for more than", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
