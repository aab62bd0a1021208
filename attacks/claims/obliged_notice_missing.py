"""A publisher leaves out a notice that the teacher's licence asks for, and signs properly."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: shop.edit(
        "terms.json", lambda terms: terms["obligations"]["notices"].append("Built with Llama"), sign=True
    ),
    threat="package's own claims",
    says="NOTICE does not say",
)

if __name__ == "__main__":
    ATTACK.main()
