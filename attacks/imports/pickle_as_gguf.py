"""A pickle is called model.gguf."""

from __future__ import annotations

import pickle
from pathlib import Path

from attacks._model import look_at_gguf, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    look_at_gguf(folder, pickle.dumps({"weight": list(range(100))}))


ATTACK = Attack(threat="import", says="a pickle, which can run any code", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
