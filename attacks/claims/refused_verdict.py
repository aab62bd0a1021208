"""A publisher packages a model that its teacher's terms forbid, and signs properly."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.edit("terms.json", lambda terms: terms.update(verdict="refused", reasons=["no competing models"]), sign=True)
    shop.check()


ATTACK = Attack(
    threat="package's own claims", says="recorded in the package say `refused`", works=works, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
