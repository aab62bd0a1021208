"""The valid signature of another release is laid beside these files."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop
from stillroom.verification.manifest import OUTSIDE


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    for name in OUTSIDE:
        shutil.copyfile(shop.older / name, shop.package / name)
    shop.check()


ATTACK = Attack(threat="mix-and-match", says="is not the file that was signed", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
