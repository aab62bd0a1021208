"""A licence for non-commercial use, and a student that is for sale."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, model, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    gate(folder, model(folder, README__md="---\nlicense: other\nlicense_name: qwen-research\n---\n"))


ATTACK = Attack(threat="terms", says="for non-commercial use only", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
