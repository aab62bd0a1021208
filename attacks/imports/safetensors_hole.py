"""Between two tensors lie bytes that nobody accounts for."""

from __future__ import annotations

from attacks._model import hostile_folder, safetensors

ATTACK = hostile_folder(
    {
        "model.safetensors": safetensors(
            {
                "a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
                "b": {"dtype": "F32", "shape": [4], "data_offsets": [32, 48]},
            },
            bytes(48),
        )
    },
    says="leaves a hole before it",
)

if __name__ == "__main__":
    ATTACK.main()
