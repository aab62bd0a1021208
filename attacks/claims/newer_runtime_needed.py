"""A package that needs a newer runtime, for its safety, is run by an older one."""

from __future__ import annotations

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: shop.edit("policy.json", lambda policy: policy.update(minimum_runtime="99.0"), sign=True),
    threat="package's own claims",
    says="asks for Stillroom",
)

if __name__ == "__main__":
    ATTACK.main()
