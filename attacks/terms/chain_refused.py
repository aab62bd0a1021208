"""A student carries the record of a refusal."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, model, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    carried = gate(folder).as_dict() | {"verdict": "refused"}
    student = model(folder / "second", README__md="# A student", terms__json=carried)
    gate(folder, student)


ATTACK = Attack(threat="terms", says="records a refusal", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
