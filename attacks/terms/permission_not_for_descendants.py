"""A student of a permitted student; the permission was for one generation."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, llama_2, model, permission, works_permission
from attacks.case import Attack


def _attack(folder: Path) -> None:
    path = permission(folder)
    first = gate(folder, llama_2(folder), terms={"permissions": [str(path)]})
    student = model(folder / "second", README__md="# A student", terms__json=first.as_dict())
    gate(folder, student, terms={"permissions": [str(path)]})


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_permission, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
