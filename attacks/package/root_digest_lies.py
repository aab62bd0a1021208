"""A signed list carries another package's root digest, to escape that package's revocation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attacks.case import Attack
from attacks.workshop import resign, works, workshop
from stillroom.core.files import digest_bytes


def _attack(folder: Path) -> None:
    def lie(statement: dict[str, Any]) -> None:
        statement["predicate"]["root"] = digest_bytes(b"another")

    shop = workshop(folder)
    resign(shop, lie)
    shop.check()


ATTACK = Attack(
    threat="tampering", says="The root digest is not the digest of the signed list", works=works, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
