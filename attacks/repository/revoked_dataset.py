"""A model runs on after the owner of its training text has withdrawn it."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop
from stillroom.core.files import digest_bytes


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.repository().revoke("dataset", digest_bytes(b"dataset"), "withdrawn by its owner")
    shop.check()


ATTACK = Attack(threat="revocation", says="is revoked by dataset", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
