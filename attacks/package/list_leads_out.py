"""A signed list names a file outside the package: even the publisher may not write there."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from attacks.case import Attack
from attacks.workshop import each, resign, works, workshop


def _attack(folder: Path) -> None:
    def listed(statement: dict[str, Any], name: str) -> None:
        statement["subject"][0]["name"] = name
        statement["predicate"]["files"][name] = {"bytes": 1, "chunks": []}

    def asked(number: int, name: str) -> None:
        shop = workshop(folder / str(number))
        resign(shop, partial(listed, name=name))
        shop.check()

    names = ("../../outside", "/etc/passwd", "weights/../../outside", "C:/outside")
    each((partial(asked, number, name) for number, name in enumerate(names)), ATTACK.says)


ATTACK = Attack(threat="tampering", says="leads out of the package", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
