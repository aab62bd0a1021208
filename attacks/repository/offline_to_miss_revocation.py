"""The connection is cut right after a revocation was seen; the kept list still holds."""

from __future__ import annotations

import contextlib
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop
from stillroom.core.errors import VerificationFailed
from stillroom.core.files import digest_bytes


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    shop.repository().revoke("teacher", digest_bytes(b"teacher"), "withdrawn")
    with contextlib.suppress(VerificationFailed):
        shop.check()
    shop.check(trust=shop.pin.model_copy(update={"repository": str(folder / "gone")}))


ATTACK = Attack(threat="device offline", says="is revoked by", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
