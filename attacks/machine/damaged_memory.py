"""The machine's memory is overwritten with rubbish, in the hope that it begins anew."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    next((folder / "state").rglob("memory.json")).write_text("{}")
    shop.check()


ATTACK = Attack(threat="wiped client state", says="memory.json", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
