"""Two tensors share their bytes."""

from __future__ import annotations

from attacks._model import gguf, hostile_gguf, tensor

ATTACK = hostile_gguf(
    gguf(tensors=[tensor("a.weight", (16,)), tensor("b.weight", offset=32)], data=bytes(128)),
    says="overlaps another one",
)

if __name__ == "__main__":
    ATTACK.main()
