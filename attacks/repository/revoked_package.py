"""A package runs on after its publisher has withdrawn it."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    with shop.verify() as verified:
        digest = verified.digest
    shop.repository().revoke("package", digest, "a defect")
    shop.check()


ATTACK = Attack(threat="revocation", says="is revoked by package", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
