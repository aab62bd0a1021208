"""The weights of a signed package are changed, and their owner names the file inside instead of the package."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import each, flip, named_inside, used_here, workshop
from stillroom.serving.models import open_model


def _works(folder: Path) -> None:
    shop = workshop(folder)
    file = next((shop.package / "weights").glob("*.gguf"))
    with used_here(shop), open_model(file) as opened:
        assert opened.passport()["signature"]["state"] == "verified"
        assert opened.gguf != file
        assert opened.gguf.read_bytes() == file.read_bytes()


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    flip(next((shop.package / "weights").glob("*.gguf")))
    with used_here(shop):
        each(named_inside(shop), "is not the file that was signed")


ATTACK = Attack(threat="tampering", says="is not the file that was signed", works=_works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
