"""The weights come as a pickle beside the safetensors, for whoever prefers them."""

from __future__ import annotations

import pickle
from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, pytorch_model__bin=pickle.dumps({"weight": 1}))
    require_safe(place)


ATTACK = Attack(threat="import", says="a pickle can run any code", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
