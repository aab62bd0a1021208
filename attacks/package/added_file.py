"""A file is added: a loader that looks for it by name would find it."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    (shop.package / "generation_config.json").write_text("{}")
    shop.check()


ATTACK = Attack(threat="tampering", says="is not on the signed list", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
