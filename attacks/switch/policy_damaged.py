"""Whoever damages the administrator's policy hopes that it no longer holds, or that `on` passes it by."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.switch._damage import NAMES, blocked, put, works
from stillroom.switch import Switch, stopping


def _attack(name: str) -> Attack:
    def attack(folder: Path) -> None:
        switch = blocked(folder)
        put(switch.places.policy, name)
        stopping.off(switch)
        stopping.on(Switch(switch.places))

    return Attack(threat="damage", says="policy", works=works, attack=attack)


ATTACKS = {name: _attack(name) for name in NAMES}
