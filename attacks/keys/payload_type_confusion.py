"""A document that the release keys signed for another purpose is offered as a list of files."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import resign, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    resign(shop, kind="application/vnd.acme.note+json")
    shop.check()


ATTACK = Attack(threat="signatures", says="is not a DSSE envelope", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
