"""A student of Llama goes by a name that hides it, properly signed."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.edit("terms.json", lambda terms: terms["obligations"].update(name_prefix="Llama"), sign=True)
    shop.check()


ATTACK = Attack(threat="package's own claims", says="does not begin with `Llama`", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
