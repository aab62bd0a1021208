"""A config is nested so deep that a reader's stack overflows."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    require_safe(model(folder, config__json=b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"))


ATTACK = Attack(threat="import", says="nested too deep", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
