"""A link in the folder leads to a file outside."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder)
    (folder / "secret.json").write_text("{}")
    (place / "special_tokens_map.json").symlink_to(folder / "secret.json")
    require_safe(place)


ATTACK = Attack(threat="import", says="a symbolic link, which can lead anywhere", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
