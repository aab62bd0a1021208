"""The signature over the provenance is removed."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "provenance.dsse").unlink()
    shop.check()


ATTACK = Attack(threat="tampering", says="provenance.dsse is missing", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
