"""The folder of weights is replaced by a link after the list was checked and before its files are opened."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import just_before, works, workshop
from stillroom.verification import verification


def _attack(folder: Path) -> None:
    shop = workshop(folder)

    def replace() -> None:
        (shop.package / "weights").rename(folder / "elsewhere")
        (shop.package / "weights").symlink_to(folder / "elsewhere")

    with just_before(verification, "copy_verified", replace):
        shop.check()


ATTACK = Attack(threat="race between check and use", says="cannot be opened as the file", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
