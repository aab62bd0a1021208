"""The online key's private file is put in the place of a release key's."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    private = folder / "keys" / "private"
    shutil.copyfile(private / "online-1.key", private / "release-1.key")
    shop.sign()


ATTACK = Attack(threat="keys at rest", says="the passphrase does not open this key", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
