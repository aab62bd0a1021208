"""A pipe is called a config: whoever reads it waits for ever."""

from __future__ import annotations

import os
from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder)
    os.mkfifo(place / "preprocessor_config.json")
    require_safe(place)


ATTACK = Attack(threat="import", says="neither a file nor a folder", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
