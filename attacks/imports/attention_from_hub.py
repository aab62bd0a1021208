"""The config names an attention kernel on a hub, which the loader would fetch and run."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, config__json={"model_type": "llama", "attn_implementation": "owner/kernel:forward"})
    require_safe(place)


ATTACK = Attack(threat="import", says="names code on a hub", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
