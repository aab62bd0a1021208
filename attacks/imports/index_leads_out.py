"""The index of shards names a file outside the folder."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"model.safetensors.index.json": {"weight_map": {"a.weight": "../../secrets/model.safetensors"}}},
    says="leads out of the folder",
)

if __name__ == "__main__":
    ATTACK.main()
