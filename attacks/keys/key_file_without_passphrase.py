"""A thief of the key folder tries passphrases."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import PASSPHRASE, each, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    each(
        (partial(shop.ring.signer, "release-1", guess) for guess in ("", "password", PASSPHRASE.upper())),
        ATTACK.says,
    )


ATTACK = Attack(threat="keys at rest", says="the passphrase does not open this key", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
