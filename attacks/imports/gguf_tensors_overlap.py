"""Two tensors share their bytes."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gguf, look_at_gguf, tensor, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    look_at_gguf(folder, gguf(tensors=[tensor("a.weight", (16,)), tensor("b.weight", offset=32)], data=bytes(128)))


ATTACK = Attack(threat="import", says="overlaps another one", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
