"""The model says nothing, and nobody decided."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, model, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    gate(folder, model(folder, README__md="# A model"))


ATTACK = Attack(threat="terms", says="it says nothing of its licence", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
