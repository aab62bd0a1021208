"""A machine without a connection sets its clock back again and again, so that the grace never ends."""

from __future__ import annotations

import datetime
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import DAY, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    gone = shop.pin.model_copy(update={"repository": str(folder / "gone")})
    shop.check(trust=gone, now=datetime.datetime.now(datetime.UTC) + 40 * DAY)
    shop.check(trust=gone, now=datetime.datetime.now(datetime.UTC) + 20 * DAY)


ATTACK = Attack(threat="clock set back", says="it was set back", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
