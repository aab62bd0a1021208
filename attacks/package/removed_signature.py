"""The signature is removed, in the hope that an unsigned package is let through."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "package.dsse").unlink()
    shop.check()


ATTACK = Attack(threat="tampering", says="nobody has signed it", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
