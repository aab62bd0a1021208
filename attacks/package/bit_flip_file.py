"""One bit is turned around in a file of the package: every file in turn, at its beginning, middle and end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import each, flip, works, workshop
from stillroom.verification.manifest import OUTSIDE, walk


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    names = [name for name in walk(shop.package) if name not in OUTSIDE]

    def flipped(name: str, place: int) -> None:
        path = shop.package / name
        before = path.read_bytes()
        flip(path, (0, len(before) // 2, len(before) - 1)[place])
        try:
            shop.check()
        finally:
            path.write_bytes(before)

    each((partial(flipped, name, place) for name in names for place in range(3)), ATTACK.says)


ATTACK = Attack(threat="tampering", says="is not the file that was signed", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
