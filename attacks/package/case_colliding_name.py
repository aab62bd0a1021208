"""A file is added whose name is another's on systems that ignore case."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "Config.json").write_text("{}")
    shop.check()


ATTACK = Attack(threat="tampering", says="differ in nothing but case", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
