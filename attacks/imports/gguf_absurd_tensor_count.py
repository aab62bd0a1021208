"""The header claims 2^60 tensors, and a reader reserves room for them."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gguf, look_at_gguf, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    look_at_gguf(folder, gguf(counts=(1 << 60, 6)))


ATTACK = Attack(threat="import", says="an absurd count of tensors", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
