"""Another model is laid beside the signed one; a runtime that takes the smallest file would run it."""

from __future__ import annotations

from attacks.workshop import changed_package, write_gguf

ATTACK = changed_package(
    lambda shop: write_gguf(shop.package / "weights" / "a.gguf", "other"),
    threat="tampering",
    says="is not on the signed list",
)

if __name__ == "__main__":
    ATTACK.main()
