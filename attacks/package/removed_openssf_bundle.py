"""The OpenSSF bundle that the signed list announces is removed."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "package.oms.sig").unlink()
    shop.check()


ATTACK = Attack(threat="tampering", says="package.oms.sig is missing", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
