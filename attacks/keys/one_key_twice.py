"""One release key's signature is entered twice, to count as two."""

from __future__ import annotations

import json
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = shop.package / "package.dsse"
    envelope = json.loads(path.read_text())
    envelope["signatures"][1] = envelope["signatures"][0]
    path.write_text(json.dumps(envelope))
    shop.check()


ATTACK = Attack(threat="signatures", says="one key has signed twice", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
