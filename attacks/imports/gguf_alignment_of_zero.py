"""An alignment of zero makes a reader divide by it."""

from __future__ import annotations

import struct
from pathlib import Path

from attacks._model import UINT32, gguf, key, look_at_gguf, plain_keys, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    keys = [part for part in plain_keys() if b"alignment" not in part]
    evil = key("general.alignment", UINT32, struct.pack("<I", 0))
    look_at_gguf(folder, gguf([*keys, evil]))


ATTACK = Attack(threat="import", says="an alignment of 0", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
