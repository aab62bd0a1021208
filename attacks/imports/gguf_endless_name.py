"""A tensor's name is longer than llama.cpp's room for it."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gguf, look_at_gguf, tensor, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    look_at_gguf(folder, gguf(tensors=[tensor("a" * 4096)]))


ATTACK = Attack(threat="import", says="a tensor's name of 4,096 bytes", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
