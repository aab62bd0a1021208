"""A signed policy holds one key twice: one reader sees the strict value, another the loose one."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = shop.package / "policy.json"
    path.write_text(path.read_text().replace('"at_expiry": "refuse"', '"at_expiry": "refuse", "at_expiry": "warn"'))
    shop.sign()
    shop.check()


ATTACK = Attack(threat="package's own claims", says="is there twice", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
