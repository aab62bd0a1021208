"""The code lies in a folder below."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder)
    (place / "assets").mkdir()
    (place / "assets" / "helper.so").write_bytes(b"\x7fELF")
    require_safe(place)


ATTACK = Attack(threat="import", says="brings its own code", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
