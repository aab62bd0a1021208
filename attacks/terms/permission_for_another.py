"""The permission is for another teacher."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, llama_2, permission, works_permission
from attacks.case import Attack


def _attack(folder: Path) -> None:
    path = permission(folder, covers=["openai-services"])
    gate(folder, llama_2(folder), terms={"permissions": [str(path)]})


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_permission, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
