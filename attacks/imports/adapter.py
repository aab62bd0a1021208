"""An adapter's config makes the loader fetch another model by name."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, adapter_config__json={"base_model_name_or_path": "owner/other"})
    require_safe(place)


ATTACK = Attack(threat="import", says="makes its reader load another model", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
