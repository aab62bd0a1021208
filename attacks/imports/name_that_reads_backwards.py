"""A sign in the name turns the reading direction, so that it looks like another one."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder)
    (place / "weights\u202esnosj.json").write_text("{}")
    require_safe(place)


ATTACK = Attack(threat="import", says="does not hold on every system", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
