"""A key of the config is there twice, and two readers read two models."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"config.json": b'{"model_type": "llama", "hidden_size":64,"hidden_size": 4096}'},
    says="the key 'hidden_size' is there twice (byte 41)",
)

if __name__ == "__main__":
    ATTACK.main()
