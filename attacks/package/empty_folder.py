"""An empty folder is added, a place for what comes later."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: (shop.package / "plugins").mkdir(),
    threat="tampering",
    says="an empty folder is not on the signed list",
)

if __name__ == "__main__":
    ATTACK.main()
