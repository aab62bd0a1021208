"""The folder brings modelling code, for loaders that trust it."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, modeling_llama__py="import os\n")
    require_safe(place)


ATTACK = Attack(threat="import", says="brings its own code", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
