"""Somebody else's root is published as the next version."""

from __future__ import annotations

import json
from pathlib import Path

from attacks.case import Attack
from attacks.workshop import PASSPHRASE, works, workshop
from stillroom.packages.keys import Ring
from stillroom.packages.repository import Repository, signers_of


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    ring = Ring.create(folder / "foreign", "acme", PASSPHRASE, cost=2)
    foreign = Repository(folder / "foreign-repo", ring, signers_of([ring], PASSPHRASE))
    foreign.init(None)
    root = json.loads((folder / "foreign-repo" / "metadata" / "1.root.json").read_text())
    root["signed"]["version"] = 2
    (shop.repo / "metadata" / "2.root.json").write_text(json.dumps(root))
    shop.check()


ATTACK = Attack(threat="an old trusted root", says="not signed by enough trusted keys", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
