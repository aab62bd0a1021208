"""A mirror goes on serving the metadata of a month ago, so that no revocation arrives."""

from __future__ import annotations

import datetime

from attacks.workshop import DAY, changed_package

ATTACK = changed_package(
    lambda shop: shop.repository(datetime.datetime.now(datetime.UTC) - 30 * DAY).refresh(),
    threat="freeze",
    says="has expired",
)

if __name__ == "__main__":
    ATTACK.main()
