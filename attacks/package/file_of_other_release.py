"""One file comes from another, validly signed release: the older policy with its looser rules."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shutil.copyfile(shop.older / "policy.json", shop.package / "policy.json")
    shop.check()


ATTACK = Attack(threat="mix-and-match", says="is not the file that was signed", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
