"""A metadata key stands twice: the licence that one reader shows is not the one that another reads."""

from __future__ import annotations

from pathlib import Path

from attacks._model import STRING, gguf, key, look_at_gguf, plain_keys, text, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    look_at_gguf(folder, gguf([*plain_keys(), key("general.license", STRING, text("mit"))]))


ATTACK = Attack(threat="import", says="the key 'general.license' stands twice", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
