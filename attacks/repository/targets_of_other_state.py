"""The repository serves release metadata of an earlier state, validly signed, beside the present snapshot."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    metadata = shop.repo / "metadata"
    shutil.copyfile(metadata / "2.targets.json", metadata / "3.targets.json")
    shop.check()


ATTACK = Attack(threat="mix-and-match", says="parts do not belong together", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
