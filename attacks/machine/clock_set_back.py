"""The clock is set back behind the last time at which a package ran here, to make old metadata look fresh."""

from __future__ import annotations

import datetime
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import DAY, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    shop.check(now=datetime.datetime.now(datetime.UTC) - DAY / 2)


ATTACK = Attack(threat="clock set back", says="it was set back", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
