"""A tensor's name stands twice in the list."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gguf, look_at_gguf, tensor, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    look_at_gguf(folder, gguf(tensors=[tensor("a.weight"), tensor("a.weight", offset=32)]))


ATTACK = Attack(threat="import", says="the tensor 'a.weight' stands twice", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
