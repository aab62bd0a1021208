"""A signed list claims a higher release than the policy in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attacks.case import Attack
from attacks.workshop import resign, works, workshop


def _attack(folder: Path) -> None:
    def lie(statement: dict[str, Any]) -> None:
        statement["predicate"]["sequence"] = 99

    shop = workshop(folder)
    resign(shop, lie)
    shop.check()


ATTACK = Attack(threat="rollback", says="name different releases", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
