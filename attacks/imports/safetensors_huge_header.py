"""The header claims to be larger than any memory."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    require_safe(model(folder, model__safetensors=b"\xff" * 7 + b"\x7f" + bytes(64)))


ATTACK = Attack(threat="import", says="the header would have", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
