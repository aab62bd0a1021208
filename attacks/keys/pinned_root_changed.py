"""A key is slipped into the pinned root itself, without its signatures."""

from __future__ import annotations

import json
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    root = json.loads(json.dumps(shop.pin.root))
    root["signed"]["roles"]["targets"]["threshold"] = 1
    shop.check(trust=shop.pin.model_copy(update={"root": root}))


ATTACK = Attack(threat="an old trusted root", says="The pinned root", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
