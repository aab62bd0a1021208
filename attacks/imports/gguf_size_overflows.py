"""The product of a tensor's shape overflows 64 bits to a small number."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gguf, look_at_gguf, tensor, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    look_at_gguf(folder, gguf(tensors=[tensor("a.weight", (1 << 33, 1 << 31, 4))]))


ATTACK = Attack(threat="import", says="the size of the tensor 'a.weight' overflows", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
