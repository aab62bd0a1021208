"""Somebody else makes keys under the publisher's name, changes the model and signs everything properly."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import PASSPHRASE, works, workshop, write_gguf
from stillroom.packages.keys import Ring
from stillroom.packages.sign import sign_package


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    ring = Ring.create(folder / "foreign", "acme", PASSPHRASE, cost=2)
    write_gguf(next((shop.package / "weights").iterdir()), "small", b"other")
    sign_package(shop.package, ring, PASSPHRASE)
    shop.check()


ATTACK = Attack(threat="signatures", says="by keys that are not trusted", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
