"""A file that no model needs rides along."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, payload__dat=b"anything")
    require_safe(place)


ATTACK = Attack(threat="import", says="not a file that a model needs", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
