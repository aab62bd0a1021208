"""The index of shards names a pickle."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    index = {"weight_map": {"a.weight": "pytorch_model-00001.bin"}}
    require_safe(model(folder, model__safetensors__index__json=index))


ATTACK = Attack(threat="import", says="is not safetensors", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
