"""One file comes from another, validly signed release: the older policy with its looser rules."""

from __future__ import annotations

import shutil

from attacks.workshop import changed_package

ATTACK = changed_package(
    lambda shop: shutil.copyfile(shop.older / "policy.json", shop.package / "policy.json"),
    threat="mix-and-match",
    says="is not the file that was signed",
)

if __name__ == "__main__":
    ATTACK.main()
