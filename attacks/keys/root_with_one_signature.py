"""The next root is signed by one root key; two of three must."""

from __future__ import annotations

import json
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import PASSPHRASE, works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    ring = shop.ring
    ring.rotate("release", "release-1", PASSPHRASE, cost=2)
    shop.repository(ring=ring).refresh()
    path = shop.repo / "metadata" / "2.root.json"
    root = json.loads(path.read_text())
    root["signatures"] = root["signatures"][:1]
    path.write_text(json.dumps(root))
    shop.check()


ATTACK = Attack(threat="signatures", says="not signed by enough trusted keys", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
