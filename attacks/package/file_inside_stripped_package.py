"""The signatures are taken away too, so that the folder looks like no package, and its owner names the file inside."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import each, flip, named_inside, used_here, workshop
from stillroom.serving.models import open_model
from stillroom.verification.manifest import OUTSIDE


def _works(folder: Path) -> None:
    shop = workshop(folder)
    file = next((shop.package / "weights").glob("*.gguf"))
    with used_here(shop):
        open_model(file).close()
        # Taken out of its package it is a file that nobody vouches for, and says so.
        with open_model(shutil.copy(file, folder / "alone.gguf")) as opened:
            assert opened.passport()["signature"]["state"] == "unsigned file"


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    flip(next((shop.package / "weights").glob("*.gguf")))
    for name in OUTSIDE:
        (shop.package / name).unlink(missing_ok=True)
    with used_here(shop):
        each(named_inside(shop), "no one has signed it")


ATTACK = Attack(threat="tampering", says="no one has signed it", works=_works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
