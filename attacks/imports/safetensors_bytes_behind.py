"""A pickle is hidden behind the last tensor."""

from __future__ import annotations

import pickle
from pathlib import Path

from attacks._model import model, safetensors, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    require_safe(model(folder, model__safetensors=safetensors(data=bytes(32) + pickle.dumps({"weight": 1}))))


ATTACK = Attack(
    threat="import", says="there are bytes behind the last tensor (byte ", works=works_folder, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
