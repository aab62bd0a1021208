"""A text claims more bytes than any memory has."""

from __future__ import annotations

import struct
from pathlib import Path

from attacks._model import STRING, gguf, key, look_at_gguf, plain_keys, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    evil = key("general.name", STRING, struct.pack("<Q", (1 << 63) + 5) + b"abcde")
    look_at_gguf(folder, gguf([*plain_keys(), evil]))


ATTACK = Attack(threat="import", says="bytes, and the file has", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
