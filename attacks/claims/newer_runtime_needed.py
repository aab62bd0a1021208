"""A package that needs a newer runtime, for its safety, is run by an older one."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.edit("policy.json", lambda policy: policy.update(minimum_runtime="99.0"), sign=True)
    shop.check()


ATTACK = Attack(threat="package's own claims", says="asks for Stillroom", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
