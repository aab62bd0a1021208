"""The key is written with an escape, so that a search for its letters finds nothing."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    config = rb'{"model_type": "llama", "auto\u005fmap": {"AutoConfig": "owner/code--config.Config"}}'
    require_safe(model(folder, config__json=config))


ATTACK = Attack(threat="import", says="`auto_map` asks for the model's own code", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
