"""A hidden file is added, which listings do not show."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / ".env").write_text("x")
    shop.check()


ATTACK = Attack(threat="tampering", says="is a hidden file", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
