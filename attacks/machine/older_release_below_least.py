"""The machine's memory is wiped; the publisher has said in signed metadata that nothing before release 3 may run."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import finished_run, works, workshop
from stillroom.packages.pack import PackOptions, pack


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    newer = folder / "newer"
    pack(finished_run(folder / "runs"), newer, PackOptions(sequence=3))
    shop.sign(newer)
    shop.repository().add(newer, least=True)
    shutil.rmtree(folder / "state", ignore_errors=True)
    shop.check()


ATTACK = Attack(threat="wiped client state", says="the least that the publisher lets run", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
