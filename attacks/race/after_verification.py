"""The weights are swapped after verification and before loading: what is loaded is the copy that was checked."""

from __future__ import annotations

import os
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import flip, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = next((shop.package / "weights").iterdir())
    signed = path.read_bytes()
    with shop.verify() as verified:
        flip(path)
        if verified.gguf.read_bytes() != signed or (os.access(verified.gguf, os.W_OK) and os.geteuid() != 0):
            return
    shop.check()


ATTACK = Attack(
    threat="race between check and use", says="is not the file that was signed", works=works, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
