"""A thief of the online key changes the model and signs the package with it."""

from __future__ import annotations

from attacks.workshop import PASSPHRASE, changed_package, resign

ATTACK = changed_package(
    lambda shop: resign(shop, signers=shop.ring.signers("online", PASSPHRASE)),
    threat="online key stolen",
    says="0 of the 2 signatures",
)

if __name__ == "__main__":
    ATTACK.main()
