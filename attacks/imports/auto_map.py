"""The config names classes of the folder's own code."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, config__json={"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}})
    require_safe(place)


ATTACK = Attack(threat="import", says="`auto_map` asks for the model's own code", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
