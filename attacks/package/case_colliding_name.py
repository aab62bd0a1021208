"""A file is added whose name is another's on systems that ignore case."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: (shop.package / "Config.json").write_text("{}"), threat="tampering", says="differ in nothing but case"
)

if __name__ == "__main__":
    ATTACK.main()
