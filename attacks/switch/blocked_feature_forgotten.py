"""Whoever damages both copies, and waits until the owner gives `off` and `on`, hopes that a blocked feature is free then."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.switch._damage import NAMES, blocked, put, works
from stillroom.switch import Switch, stopping


def _attack(name: str) -> Attack:
    def attack(folder: Path) -> None:
        switch = blocked(folder)
        for path in switch.places.switches:
            put(path, name)
        fresh = Switch(switch.places)
        stopping.off(fresh)
        stopping.on(fresh)
        Switch(switch.places).require_on("api")

    return Attack(threat="damage", says="`api` is blocked", works=works, attack=attack)


ATTACKS = {name: _attack(name) for name in NAMES}
