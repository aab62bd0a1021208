"""A key of the config stands twice, and two readers read two models."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    config = b'{"model_type": "llama", "hidden_size":64,"hidden_size": 4096}'
    require_safe(model(folder, config__json=config))


ATTACK = Attack(
    threat="import", says="the key 'hidden_size' stands twice (byte 41)", works=works_folder, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
