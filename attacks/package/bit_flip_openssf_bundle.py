"""One bit is turned around in the OpenSSF bundle beside the package, so that other tools and ours would disagree."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import flip, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = shop.package / "package.oms.sig"
    flip(path, path.read_bytes().index(b'"sig"') + 20)
    shop.check()


ATTACK = Attack(threat="tampering", says="package.oms.sig", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
