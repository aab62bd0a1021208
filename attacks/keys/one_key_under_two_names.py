"""One release key's signature is entered a second time under an invented key identifier."""

from __future__ import annotations

import json
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    path = shop.package / "package.dsse"
    envelope = json.loads(path.read_text())
    envelope["signatures"][1] = envelope["signatures"][0] | {"keyid": "0" * 64}
    path.write_text(json.dumps(envelope))
    shop.check()


ATTACK = Attack(threat="signatures", says="1 of the 2 signatures", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
