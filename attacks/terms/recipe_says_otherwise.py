"""The recipe claims another licence than the model states."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate_with, llama_2, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    teacher = {"kind": "huggingface", "name": str(llama_2(folder)), "licence": "apache-2.0"}
    gate_with(folder, teacher)


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_terms, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
