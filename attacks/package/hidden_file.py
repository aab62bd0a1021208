"""A hidden file is added, which listings do not show."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: (shop.package / ".env").write_text("x"), threat="tampering", says="is a hidden file"
)

if __name__ == "__main__":
    ATTACK.main()
