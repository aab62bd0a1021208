"""A tensor's name is there twice in the list."""

from __future__ import annotations

from attacks._model import gguf, hostile_gguf, tensor

ATTACK = hostile_gguf(
    gguf(tensors=[tensor("a.weight"), tensor("a.weight", offset=32)]), says="the tensor 'a.weight' is there twice"
)

if __name__ == "__main__":
    ATTACK.main()
