"""A model runs on after the owner of its training text has withdrawn it."""

from __future__ import annotations

from attacks.workshop import changed_package
from stillroom.core.files import digest_bytes

ATTACK = changed_package(
    lambda shop: shop.repository().revoke("dataset", digest_bytes(b"dataset"), "withdrawn by its owner"),
    threat="revocation",
    says="is revoked by dataset",
)

if __name__ == "__main__":
    ATTACK.main()
