"""A model of another owner is decided to be one's own."""

from __future__ import annotations

from pathlib import Path

from attacks._model import OWN, gate, llama_2, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    gate(folder, llama_2(folder), terms={"decisions": [OWN]})


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_terms, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
