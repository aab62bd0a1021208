"""A student of Llama goes by a name that hides it, properly signed."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: shop.edit("terms.json", lambda terms: terms["obligations"].update(name_prefix="Llama"), sign=True),
    threat="package's own claims",
    says="does not begin with `Llama`",
)

if __name__ == "__main__":
    ATTACK.main()
