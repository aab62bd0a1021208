"""A mirror goes on serving the metadata of a month ago, so that no revocation arrives."""

from __future__ import annotations

import datetime
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import DAY, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.repository(datetime.datetime.now(datetime.UTC) - 30 * DAY).refresh()
    shop.check()


ATTACK = Attack(threat="freeze", says="has expired", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
