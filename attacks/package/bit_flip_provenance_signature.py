"""One bit is turned around in the signature over the provenance."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import flip, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = shop.package / "provenance.dsse"
    flip(path, path.read_bytes().index(b'"sig":"') + 20)
    shop.check()


ATTACK = Attack(threat="tampering", says="provenance.dsse", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
