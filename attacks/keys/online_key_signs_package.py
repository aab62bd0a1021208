"""A thief of the online key changes the model and signs the package with it."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import PASSPHRASE, resign, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    resign(shop, signers=shop.ring.signers("online", PASSPHRASE))
    shop.check()


ATTACK = Attack(threat="online key stolen", says="0 of the 2 signatures", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
