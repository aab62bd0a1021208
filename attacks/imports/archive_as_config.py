"""An archive is called a config."""

from __future__ import annotations

import gzip
from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, extra__json=gzip.compress(b"{}"))
    require_safe(place)


ATTACK = Attack(threat="import", says="a gzip archive", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
