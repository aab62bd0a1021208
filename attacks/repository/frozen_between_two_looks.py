"""The metadata was fresh when the machine first looked; two weeks later the mirror still serves the same."""

from __future__ import annotations

import datetime
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import DAY, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    shop.check(now=datetime.datetime.now(datetime.UTC) + 14 * DAY)


ATTACK = Attack(threat="freeze", says="holds back newer metadata", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
