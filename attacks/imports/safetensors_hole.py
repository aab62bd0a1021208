"""Between two tensors lie bytes that nobody accounts for."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, safetensors, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    header = {
        "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
        "b": {"dtype": "F32", "shape": [4], "data_offsets": [32, 48]},
    }
    require_safe(model(folder, model__safetensors=safetensors(header, bytes(48))))


ATTACK = Attack(threat="import", says="leaves a hole before it", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
