"""Arrays lie in arrays, so deep that a reader's stack overflows."""

from __future__ import annotations

import struct
from pathlib import Path

from attacks._model import ARRAY, gguf, key, look_at_gguf, plain_keys, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    deep = struct.pack("<IQ", ARRAY, 1) * 50_000 + struct.pack("<IQ", 0, 1) + b"x"
    look_at_gguf(folder, gguf([*plain_keys(), key("deep", ARRAY, deep)]))


ATTACK = Attack(threat="import", says="arrays nested more than", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
