"""The product of a shape overflows 64 bits to a small number."""

from __future__ import annotations

from attacks._model import hostile_folder, safetensors

ATTACK = hostile_folder(
    {
        "model.safetensors": safetensors(
            {"a": {"dtype": "F32", "shape": [1 << 32, 1 << 32, 4], "data_offsets": [0, 16]}}, bytes(16)
        )
    },
    says="the size of tensor 'a' overflows",
)

if __name__ == "__main__":
    ATTACK.main()
