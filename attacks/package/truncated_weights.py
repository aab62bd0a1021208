"""The weights are cut short."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = next((shop.package / "weights").iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    shop.check()


ATTACK = Attack(threat="tampering", says="were signed", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
