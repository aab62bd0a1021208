"""A file is removed: the template that every conversation goes through."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "template.jinja").unlink()
    shop.check()


ATTACK = Attack(threat="tampering", says="of the signed list is missing", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
