"""A publisher leaves out a notice that the teacher's licence asks for, and signs properly."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.edit("terms.json", lambda terms: terms["obligations"]["notices"].append("Built with Llama"), sign=True)
    shop.check()


ATTACK = Attack(threat="package's own claims", says="NOTICE does not say", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
