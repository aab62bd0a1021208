"""A teacher is revoked by the digest of its package; its student names it by the digest of its weights."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import third_generation, workshop


def _works(folder: Path) -> None:
    shop = workshop(folder)
    shop.check(third_generation(shop))


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    with shop.verify() as verified:
        digest = verified.digest
    shop.repository().revoke("teacher", digest, "a defect")
    shop.check(third_generation(shop))


ATTACK = Attack(threat="revocation", says="is revoked by teacher", works=_works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
