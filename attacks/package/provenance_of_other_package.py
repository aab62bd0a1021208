"""The signed provenance of another model is laid beside this one."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import finished_run, works, workshop
from stillroom.core.files import digest_bytes
from stillroom.packages.pack import PackOptions, pack


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    other = finished_run(folder / "runs", "other", {"name": "Other", "digest": digest_bytes(b"other")})
    target = pack(other, folder / "other", PackOptions())
    shop.sign(target)
    shutil.copyfile(target / "provenance.dsse", shop.package / "provenance.dsse")
    shop.check()


ATTACK = Attack(threat="mix-and-match", says="signs another provenance", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
