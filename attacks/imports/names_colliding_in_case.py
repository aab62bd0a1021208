"""Two files differ in case only; on another system one of them replaces the other."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder)
    (place / "Config.json").write_text("{}")
    require_safe(place)


ATTACK = Attack(threat="import", says="differ in nothing but case", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
