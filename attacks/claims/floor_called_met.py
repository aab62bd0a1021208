"""A publisher writes `met: true` beside a score that misses its own bound, and signs properly."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: shop.edit("eval.json", lambda scores: scores["bounds"][0].update(value=1.5, met=True), sign=True),
    threat="package's own claims",
    says="its maximum",
)

if __name__ == "__main__":
    ATTACK.main()
