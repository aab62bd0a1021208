"""A thief of one release key changes the model and signs it; two of three must."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop, write_gguf


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    write_gguf(next((shop.package / "weights").iterdir()), "small", b"other")
    shop.sign(names=("release-1",))
    shop.check()


ATTACK = Attack(threat="release key stolen", says="1 of the 2 signatures", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
