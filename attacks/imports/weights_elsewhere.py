"""The config makes the loader take its weights from another folder."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"config.json": {"model_type": "llama", "transformers_weights": "../other/pytorch_model.bin"}},
    says="which is not a safetensors file of the folder",
)

if __name__ == "__main__":
    ATTACK.main()
