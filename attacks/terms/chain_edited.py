"""The terms that a student carries were edited to say allowed; what they say of its teacher was left."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, model, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    carried = gate(folder).as_dict()
    carried["teachers"][0]["statements"][0]["value"] = "llama2"
    student = model(folder / "second", README__md="# A student", terms__json=carried)
    gate(folder, student)


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_terms, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
