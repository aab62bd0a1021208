"""A publisher leaves out the licence copy that must travel with the model, and signs properly."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    licence = {"name": "Llama-3.3", "text": "the licence"}
    shop.edit("terms.json", lambda terms: terms["obligations"]["licences"].append(licence), sign=True)
    shop.check()


ATTACK = Attack(
    threat="package's own claims", says="the licence Llama-3.3 is not among its files", works=works, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
