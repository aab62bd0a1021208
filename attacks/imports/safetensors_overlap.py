"""Two tensors share their bytes."""

from __future__ import annotations

from attacks._model import hostile_folder, safetensors

ATTACK = hostile_folder(
    {
        "model.safetensors": safetensors(
            {
                "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                "b": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
            },
            bytes(24),
        )
    },
    says="overlaps another one",
)

if __name__ == "__main__":
    ATTACK.main()
