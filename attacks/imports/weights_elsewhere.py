"""The config makes the loader take its weights from another folder."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, config__json={"model_type": "llama", "transformers_weights": "../other/pytorch_model.bin"})
    require_safe(place)


ATTACK = Attack(
    threat="import", says="which is not a safetensors file of the folder", works=works_folder, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
