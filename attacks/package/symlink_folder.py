"""The folder of weights is replaced by a link to a folder outside."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "weights").rename(folder / "elsewhere")
    (shop.package / "weights").symlink_to(folder / "elsewhere")
    shop.check()


ATTACK = Attack(threat="tampering", says="is a symbolic link", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
