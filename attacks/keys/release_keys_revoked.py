"""Two release keys were stolen and sign a changed model; the publisher has revoked one of them by its identifier."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop, write_gguf


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    write_gguf(next((shop.package / "weights").iterdir()), "small", b"other")
    shop.sign()
    shop.repository().revoke("key", shop.ring.content.keys["release-1"].keyid, "stolen")
    shop.check()


ATTACK = Attack(threat="release key stolen", says="by revoked keys", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
