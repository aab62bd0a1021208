"""Bytes are appended to the weights; most loaders never look there."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    with open(next((shop.package / "weights").iterdir()), "ab") as stream:
        stream.write(b"more")
    shop.check()


ATTACK = Attack(threat="tampering", says="were signed", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
