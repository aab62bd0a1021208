"""Release keys that were rotated away sign a package; the machine's pinned root still names them."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import PASSPHRASE, workshop


def _works(folder: Path) -> None:
    shop = workshop(folder)
    ring = shop.ring
    for name in ("release-1", "release-2"):
        ring.rotate("release", name, PASSPHRASE, cost=2)
    shop.repository(ring=ring).refresh()
    shop.sign(names=("release-4", "release-5"))
    shop.check()


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    ring = shop.ring
    for name in ("release-1", "release-2"):
        ring.rotate("release", name, PASSPHRASE, cost=2)
    shop.repository(ring=ring).refresh()
    shop.check()


ATTACK = Attack(threat="an old trusted root", says="by keys that are not trusted", works=_works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
