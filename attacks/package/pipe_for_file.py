"""A file is replaced by a named pipe, which gives other bytes to every reader or none at all for ever."""

from __future__ import annotations

import os
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "config.json").unlink()
    os.mkfifo(shop.package / "config.json")
    shop.check()


ATTACK = Attack(threat="tampering", says="is neither file nor folder", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
