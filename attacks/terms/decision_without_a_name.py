"""A decision that nobody made."""

from __future__ import annotations

from pathlib import Path

from attacks._model import works_terms
from attacks.case import Attack
from stillroom.recipe.reading import parse_recipe


def _attack(_: Path) -> None:
    recipe = "name: x\ncorpus: {sources: [{kind: python_docs}]}\nteacher: {kind: gguf, path: a}\n"
    decision = "terms: {decisions: [{kind: own, decided_by: ' ', decided_at: 2026-11-24T00:00:00Z}]}\n"
    parse_recipe(recipe + decision)


ATTACK = Attack(threat="terms", says="at least 2 characters", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
