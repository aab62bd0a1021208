"""A thief of the online key writes release metadata that reinstates a revoked package."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import signed_by_thief, works, workshop
from stillroom.core.files import digest_bytes
from stillroom.verification.documents import REINSTATEMENTS, Reinstatements


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    entry = shop.repository().revoke("teacher", digest_bytes(b"teacher"), "withdrawn")
    signed_by_thief(shop, "targets", REINSTATEMENTS, Reinstatements(format=1, reinstated=(entry.id,)), "online")
    shop.check()


ATTACK = Attack(threat="online key stolen", says="not signed by enough trusted keys", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
