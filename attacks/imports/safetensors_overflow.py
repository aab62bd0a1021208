"""The product of a shape overflows 64 bits to a small number."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, safetensors, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    header = {"a": {"dtype": "F32", "shape": [1 << 32, 1 << 32, 4], "data_offsets": [0, 16]}}
    require_safe(model(folder, model__safetensors=safetensors(header, bytes(16))))


ATTACK = Attack(threat="import", says="the size of tensor 'a' overflows", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
