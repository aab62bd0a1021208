"""A tensor's offset points behind the file."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gguf, look_at_gguf, tensor, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    look_at_gguf(folder, gguf(tensors=[tensor("a.weight", offset=1 << 40)]))


ATTACK = Attack(threat="import", says="behind the file's end", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
