"""The memory is wiped and the clock set to a year before the application was built."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import DAY, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    shutil.rmtree(folder / "state")
    shop.check(now=datetime.datetime.now(datetime.UTC) - 365 * DAY)


ATTACK = Attack(threat="clock set back", says="it was set back", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
