"""A signed list names one file in two cases, so that the later one would overwrite the earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attacks.case import Attack
from attacks.workshop import resign, works, workshop


def _attack(folder: Path) -> None:
    def listed(statement: dict[str, Any]) -> None:
        config = next(subject for subject in statement["subject"] if subject["name"] == "config.json")
        statement["subject"].insert(0, config | {"name": "CONFIG.json"})
        statement["predicate"]["files"]["CONFIG.json"] = statement["predicate"]["files"]["config.json"]

    shop = workshop(folder)
    resign(shop, listed)
    shop.check()


ATTACK = Attack(threat="tampering", says="differ in nothing but case", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
