"""A signed list names one file twice with two digests, so that the loader may pick either."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attacks.case import Attack
from attacks.workshop import resign, works, workshop


def _listed(statement: dict[str, Any]) -> None:
    config = next(subject for subject in statement["subject"] if subject["name"] == "config.json")
    place = statement["subject"].index(config)
    statement["subject"].insert(place, config | {"digest": {"sha256": "0" * 64}})


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    resign(shop, _listed)
    shop.check()


ATTACK = Attack(threat="tampering", says="is there twice on the list", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
