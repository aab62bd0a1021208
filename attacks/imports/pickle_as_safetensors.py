"""A pickle is called model.safetensors, for a loader that guesses by content."""

from __future__ import annotations

import pickle

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"model.safetensors": pickle.dumps({"weight": list(range(100))})},
    says="model.safetensors: a pickle, which can run any code",
)

if __name__ == "__main__":
    ATTACK.main()
