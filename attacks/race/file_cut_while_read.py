"""A file is cut short after it was opened and before it was read to its end."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from attacks.case import Attack
from attacks.workshop import works, workshop
from stillroom.verification import copying


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = next((shop.package / "weights").iterdir())
    check = copying._check

    def cut(name: str, *rest: Any, **options: Any) -> None:
        if name.startswith("weights/"):
            os.truncate(path, path.stat().st_size - 1)
        check(name, *rest, **options)

    copying._check = cut
    try:
        shop.check()
    finally:
        copying._check = check


ATTACK = Attack(
    threat="race between check and use", says="is not the file that was signed", works=works, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
