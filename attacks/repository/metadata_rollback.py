"""The whole repository is replaced by an earlier copy of itself, from before a revocation."""

from __future__ import annotations

import shutil
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop
from stillroom.core.files import digest_bytes


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shutil.copytree(shop.repo, folder / "before")
    shop.repository().revoke("dataset", digest_bytes(b"some other data"), "withdrawn")
    shop.check()
    shutil.rmtree(shop.repo)
    (folder / "before").rename(shop.repo)
    shop.check()


ATTACK = Attack(threat="rollback", says="looks like a rollback", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
