"""Whoever can damage both copies hopes that the switch crashes, or begins anew and is on."""

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
        stopping.status(fresh)
        fresh.require_on()

    return Attack(threat="damage", says="cannot be read", works=works, attack=attack)


ATTACKS = {name: _attack(name) for name in NAMES}
