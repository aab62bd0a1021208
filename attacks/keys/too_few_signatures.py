"""One of the two release keys that must sign has signed."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop
from stillroom.verification.manifest import OUTSIDE


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    for name in OUTSIDE:
        (shop.package / name).unlink()
    shop.sign(names=("release-3",))
    shop.check()


ATTACK = Attack(threat="signatures", says="1 of the 2 signatures", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
