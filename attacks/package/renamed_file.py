"""A file gets another name, its bytes as before."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: (shop.package / "template.jinja").rename(shop.package / "chat_template.jinja"),
    threat="tampering",
    says="is missing and",
)

if __name__ == "__main__":
    ATTACK.main()
