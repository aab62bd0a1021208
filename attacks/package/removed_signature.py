"""The signature is removed, in the hope that an unsigned package is let through."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: (shop.package / "package.dsse").unlink(), threat="tampering", says="no one has signed it"
)

if __name__ == "__main__":
    ATTACK.main()
