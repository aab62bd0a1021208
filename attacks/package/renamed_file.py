"""A file gets another name, its bytes as before."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "template.jinja").rename(shop.package / "chat_template.jinja")
    shop.check()


ATTACK = Attack(threat="tampering", says="is missing and", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
