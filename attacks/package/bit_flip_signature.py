"""One bit is turned around in the package's own signature file, at forty places over its whole length."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import each, flip, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = shop.package / "package.dsse"
    before = path.read_bytes()

    def flipped(position: int) -> None:
        path.write_bytes(before)
        flip(path, position, position % 8)
        shop.check()

    each((partial(flipped, len(before) * place // 40) for place in range(40)), "")
    path.write_bytes(before)
    flip(path, before.index(b'"sig":"') + 20)
    shop.check()


ATTACK = Attack(threat="tampering", says="package.dsse", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
