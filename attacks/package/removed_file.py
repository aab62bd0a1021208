"""A file is removed: the template that every conversation goes through."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: (shop.package / "template.jinja").unlink(), threat="tampering", says="of the signed list is missing"
)

if __name__ == "__main__":
    ATTACK.main()
