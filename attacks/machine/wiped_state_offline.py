"""The memory is wiped and the connection cut, so that no revocation is known."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    shutil.rmtree(folder / "state")
    shop.check(trust=shop.pin.model_copy(update={"repository": str(folder / "gone")}))


ATTACK = Attack(threat="wiped client state", says="Nothing is known yet", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
