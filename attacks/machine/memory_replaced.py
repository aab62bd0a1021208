"""Something that is no file is put in the place of the machine's memory, in the hope that it counts as none."""

from __future__ import annotations

import os
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop
from stillroom.core.errors import VerificationFailed


def _link_to_nothing(path: str) -> None:
    Path(path).symlink_to("nowhere")


def _link_to_itself(path: str) -> None:
    Path(path).symlink_to(path)


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.check()
    memory = next((folder / "state").rglob("memory.json"))
    refused: list[VerificationFailed] = []
    for make in (os.mkdir, os.mkfifo, _link_to_nothing, _link_to_itself):
        if memory.is_dir():
            memory.rmdir()
        else:
            memory.unlink(missing_ok=True)
        make(str(memory))
        try:
            shop.check()
        except VerificationFailed as error:
            refused.append(error)
        else:
            return
    raise refused[-1]


ATTACK = Attack(threat="wiped client state", says="memory.json", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
