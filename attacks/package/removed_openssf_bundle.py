"""The OpenSSF bundle that the signed list announces is removed."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: (shop.package / "package.oms.sig").unlink(), threat="tampering", says="package.oms.sig is missing"
)

if __name__ == "__main__":
    ATTACK.main()
