"""A publisher, or whoever holds two keys, signs a package that carries a pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "weights" / "model.bin").write_bytes(pickle.dumps({"weight": 1}))
    shop.sign()
    shop.check()


ATTACK = Attack(threat="package's own claims", says="pickle", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
