"""The header claims 2^40 keys."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gguf, look_at_gguf, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    look_at_gguf(folder, gguf(counts=(2, 1 << 40)))


ATTACK = Attack(threat="import", says="an absurd count of keys", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
