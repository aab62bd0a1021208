"""A program is called a picture."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, logo__png=b"\x7fELF\x02\x01\x01" + bytes(100))
    require_safe(place)


ATTACK = Attack(threat="import", says="a program (ELF)", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
