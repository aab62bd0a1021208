"""A pickle is called model.safetensors, for a loader that guesses by content."""

from __future__ import annotations

import pickle
from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, model__safetensors=pickle.dumps({"weight": list(range(100))}))
    require_safe(place)


ATTACK = Attack(
    threat="import", says="model.safetensors: a pickle, which can run any code", works=works_folder, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
