"""The product of a tensor's shape overflows 64 bits to a small number."""

from __future__ import annotations

from attacks._model import gguf, hostile_gguf, tensor

ATTACK = hostile_gguf(
    gguf(tensors=[tensor("a.weight", (1 << 33, 1 << 31, 4))]), says="the size of the tensor 'a.weight' overflows"
)

if __name__ == "__main__":
    ATTACK.main()
