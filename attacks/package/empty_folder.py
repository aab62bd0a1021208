"""An empty folder is added, a place for what comes later."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "plugins").mkdir()
    shop.check()


ATTACK = Attack(threat="tampering", says="an empty folder is not on the signed list", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
