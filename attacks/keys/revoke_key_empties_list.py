"""A thief of the revoke key publishes an empty list; the machine has seen the full one."""

from __future__ import annotations

import contextlib
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import signed_by_thief, works, workshop
from stillroom.core.errors import VerificationFailed
from stillroom.core.files import digest_bytes
from stillroom.verification.documents import REVOCATIONS, RevocationList


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.repository().revoke("teacher", digest_bytes(b"teacher"), "withdrawn")
    with contextlib.suppress(VerificationFailed):
        shop.check()
    signed_by_thief(shop, "revoke", REVOCATIONS, RevocationList(format=1, revocations=()), "revoke")
    shop.check()


ATTACK = Attack(threat="revoke key stolen", says="is revoked by", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
