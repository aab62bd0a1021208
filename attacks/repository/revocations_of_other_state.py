"""The repository serves the list of revocations from before this package was revoked."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop
from stillroom.core.files import digest_bytes


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    lists = shop.repo / "targets" / "revocations"
    before = next(lists.iterdir()).read_bytes()
    shop.repository().revoke("teacher", digest_bytes(b"teacher"), "withdrawn")
    newest = max(lists.iterdir(), key=lambda path: path.stat().st_size)
    newest.write_bytes(before.ljust(newest.stat().st_size))
    shop.check()


ATTACK = Attack(threat="mix-and-match", says="parts do not belong together", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
