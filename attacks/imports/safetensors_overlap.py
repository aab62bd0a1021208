"""Two tensors share their bytes."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, safetensors, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    }
    require_safe(model(folder, model__safetensors=safetensors(header, bytes(24))))


ATTACK = Attack(threat="import", says="overlaps another one", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
