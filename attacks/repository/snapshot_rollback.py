"""Only the snapshot is taken back to an earlier version, under the new timestamp."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    metadata = shop.repo / "metadata"
    shutil.copyfile(metadata / "2.snapshot.json", metadata / "3.snapshot.json")
    shop.check()


ATTACK = Attack(threat="rollback", says="parts do not belong together", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
