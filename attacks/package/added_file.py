"""A file is added: a loader that looks for it by name would find it."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: (shop.package / "generation_config.json").write_text("{}"),
    threat="tampering",
    says="is not on the signed list",
)

if __name__ == "__main__":
    ATTACK.main()
