"""A publisher packages a model that its teacher's terms forbid, and signs properly."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: shop.edit(
        "terms.json", lambda terms: terms.update(verdict="refused", reasons=["no competing models"]), sign=True
    ),
    threat="package's own claims",
    says="recorded in the package say `refused`",
)

if __name__ == "__main__":
    ATTACK.main()
