"""The count of an array times the size of its entries overflows to a small number."""

from __future__ import annotations

import struct
from pathlib import Path

from attacks._model import ARRAY, gguf, key, look_at_gguf, plain_keys, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    evil = key("tokenizer.ggml.extra", ARRAY, struct.pack("<IQ", 10, (1 << 61) + 1) + bytes(8))
    look_at_gguf(folder, gguf([*plain_keys(), evil]))


ATTACK = Attack(threat="import", says="entries do not fit", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
