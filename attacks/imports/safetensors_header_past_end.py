"""The header claims more bytes than the file has."""

from __future__ import annotations

import struct
from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    require_safe(model(folder, model__safetensors=struct.pack("<Q", 4096) + b"{}"))


ATTACK = Attack(threat="import", says="behind the file's end", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
