"""Another model is laid beside the signed one; a runtime that takes the smallest file would run it."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop, write_gguf


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    write_gguf(shop.package / "weights" / "a.gguf", "other")
    shop.check()


ATTACK = Attack(threat="tampering", says="is not on the signed list", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
