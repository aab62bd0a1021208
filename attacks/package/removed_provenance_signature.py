"""The signature over the provenance is removed."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: (shop.package / "provenance.dsse").unlink(), threat="tampering", says="provenance.dsse is missing"
)

if __name__ == "__main__":
    ATTACK.main()
