"""The connection is cut for longer than the signed policy allows."""

from __future__ import annotations

import datetime
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import DAY, workshop


def _works(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    gone = shop.pin.model_copy(update={"repository": str(folder / "gone")})
    for days in (0, 20, 40):
        with shop.verify(trust=gone, now=datetime.datetime.now(datetime.UTC) + days * DAY) as verified:
            assert "offline" in verified.passport()["warnings"][0]


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    gone = shop.pin.model_copy(update={"repository": str(folder / "gone")})
    shop.check(trust=gone, now=datetime.datetime.now(datetime.UTC) + 60 * DAY)


ATTACK = Attack(threat="device offline", says="Offline for too long", works=_works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
