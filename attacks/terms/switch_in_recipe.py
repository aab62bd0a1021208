"""The recipe asks for the gate to be left out."""

from __future__ import annotations

from pathlib import Path

from attacks._model import works_terms
from attacks.case import Attack
from stillroom.recipe.reading import parse_recipe


def _attack(_: Path) -> None:
    switch = "name: x\ncorpus: {sources: [{kind: python_docs}]}\nteacher: {kind: gguf, path: a}\nterms: {skip: true}\n"
    parse_recipe(switch)


ATTACK = Attack(threat="terms", says="is not a key of this section", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
