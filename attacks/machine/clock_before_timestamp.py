"""A machine that remembers nothing shows a time before the metadata was signed."""

from __future__ import annotations

import datetime
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import DAY, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.repository().refresh()
    shop.check(now=datetime.datetime.now(datetime.UTC) - DAY / 2)


ATTACK = Attack(threat="clock set back", says="it was set back", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
