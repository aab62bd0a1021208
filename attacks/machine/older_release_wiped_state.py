"""The machine's memory is wiped, then an older release is installed; the application ships with a least release."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    shutil.rmtree(folder / "state")
    shop.check(shop.older, trust=shop.pin.model_copy(update={"least_sequences": {"small": 2}}))


ATTACK = Attack(
    threat="wiped client state", says="the least that this application ships with", works=works, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
