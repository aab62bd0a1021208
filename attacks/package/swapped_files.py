"""Two signed files of one length swap their names: both digests are on the list, each under the other name."""

from __future__ import annotations

from pathlib import Path

from attacks.case import Attack
from attacks.workshop import works, workshop


def _attack(folder: Path) -> None:
    shop = workshop(folder)
    one, other = shop.package / "config.json", shop.package / "tokenizer.json"
    size = max(one.stat().st_size, other.stat().st_size)
    for path in (one, other):
        path.write_bytes(path.read_bytes().ljust(size))
    shop.sign()
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    shop.check()


ATTACK = Attack(threat="tampering", says="is not the file that was signed", works=works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
