"""A file is replaced by a link to one with the same bytes outside, to be changed after the check."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = next((shop.package / "weights").iterdir())
    path.rename(folder / "elsewhere.gguf")
    path.symlink_to(folder / "elsewhere.gguf")
    shop.check()


ATTACK = Attack(threat="tampering", says="is a symbolic link", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
