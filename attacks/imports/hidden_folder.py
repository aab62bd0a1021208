"""A hidden folder holds hooks that version control would run."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder)
    (place / ".git" / "hooks").mkdir(parents=True)
    (place / ".git" / "hooks" / "post-checkout").write_text("#!/bin/sh")
    require_safe(place)


ATTACK = Attack(threat="import", says="a hidden file", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
