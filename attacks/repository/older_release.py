"""An older release, validly signed, is installed after a newer one has run."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    shop.check(shop.older)


ATTACK = Attack(threat="rollback", says="the highest release seen on this machine", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
