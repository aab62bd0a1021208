"""HOME and the XDG variables are pointed at an empty folder, to make the machine forget what it has seen."""

from __future__ import annotations

import os
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop
from stillroom.switch.places import Places


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    keep = Places.of_user()
    setting = {name: str(folder / "empty") for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    before = {name: os.environ.get(name) for name in setting}
    os.environ.update(setting)
    Places.of_user.cache_clear()
    try:
        if Places.of_user() != keep:
            return  # the environment moved it: the attack has succeeded
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        Places.of_user.cache_clear()
    shop.check()
    shop.check(shop.older)


ATTACK = Attack(
    threat="wiped client state", says="the highest release seen on this machine", works=works, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
