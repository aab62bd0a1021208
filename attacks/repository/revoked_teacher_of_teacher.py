"""A student of a student of a student runs on after the first teacher was revoked; each was distilled from a package."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import third_generation, workshop
from stillroom.core.files import digest_bytes


def _works(folder: Path) -> None:
    shop = workshop(folder)
    shop.repository().revoke("teacher", digest_bytes(b"somebody else's teacher"), "its licence was withdrawn")
    shop.check(third_generation(shop))


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.repository().revoke("teacher", digest_bytes(b"teacher"), "its licence was withdrawn")
    shop.check(third_generation(shop))


ATTACK = Attack(threat="revocation", says="is revoked by teacher", works=_works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
