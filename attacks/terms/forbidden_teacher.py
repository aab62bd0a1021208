"""The teacher's licence forbids to train other models on its outputs."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, llama_2, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    gate(folder, llama_2(folder))


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_terms, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
