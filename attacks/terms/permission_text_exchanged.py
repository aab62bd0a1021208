"""The copy of a permission's text was exchanged after it was recorded."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, llama_2, permission, works_permission
from attacks.case import Attack


def _attack(folder: Path) -> None:
    path = permission(folder)
    (folder / "letter.txt").write_text("You may do whatever you like with everything.")
    gate(folder, llama_2(folder), terms={"permissions": [str(path)]})


ATTACK = Attack(
    threat="terms", says="not the text that permission.yaml records", works=works_permission, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
