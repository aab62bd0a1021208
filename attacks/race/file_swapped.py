"""A file is swapped for one of the same length after the list was checked and before its bytes are read."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import flip, just_before, works, workshop
from stillroom.verification import verification


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = next((shop.package / "weights").iterdir())
    with just_before(verification, "copy_verified", partial(flip, path)):
        shop.check()


ATTACK = Attack(
    threat="race between check and use", says="is not the file that was signed", works=works, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
