"""Whoever can damage one copy of the state hopes that the other one, which says on, is believed."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.switch._damage import NAMES, blocked, put, works
from stillroom.switch import Switch


def _attack(name: str) -> Attack:
    def attack(folder: Path) -> None:
        switch = blocked(folder)
        put(switch.places.switches[1], name)
        Switch(switch.places).require_on()

    return Attack(threat="damage", says="cannot be read", works=works, attack=attack)


ATTACKS = {name: _attack(name) for name in NAMES}
