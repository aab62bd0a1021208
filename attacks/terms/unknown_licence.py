"""Nobody knows the licence that the model states."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, model, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    gate(folder, model(folder, README__md="---\nlicense: other\nlicense_name: frontier-2\n---\n"))


ATTACK = Attack(threat="terms", says="which no table knows", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
