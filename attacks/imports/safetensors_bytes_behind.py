"""A pickle is hidden behind the last tensor."""

from __future__ import annotations

import pickle

from attacks._model import hostile_folder, safetensors

ATTACK = hostile_folder(
    {"model.safetensors": safetensors(data=bytes(32) + pickle.dumps({"weight": 1}))},
    says="there are bytes behind the last tensor (byte ",
)

if __name__ == "__main__":
    ATTACK.main()
