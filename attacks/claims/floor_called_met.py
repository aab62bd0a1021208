"""A publisher writes `met: true` beside a score that misses its own bound, and signs properly."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.edit("eval.json", lambda scores: scores["bounds"][0].update(value=1.5, met=True), sign=True)
    shop.check()


ATTACK = Attack(threat="package's own claims", says="its ceiling", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
