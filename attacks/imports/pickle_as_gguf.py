"""A pickle is called model.gguf."""

from __future__ import annotations

import pickle

from attacks._model import hostile_gguf

ATTACK = hostile_gguf(pickle.dumps({"weight": list(range(100))}), says="a pickle, which can run any code")

if __name__ == "__main__":
    ATTACK.main()
