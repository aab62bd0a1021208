"""The index of shards names a pickle."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"model.safetensors.index.json": {"weight_map": {"a.weight": "pytorch_model-00001.bin"}}}, says="is not safetensors"
)

if __name__ == "__main__":
    ATTACK.main()
