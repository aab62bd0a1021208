"""A tensor's name is longer than llama.cpp's room for it."""

from __future__ import annotations

from attacks._model import gguf, hostile_gguf, tensor

ATTACK = hostile_gguf(gguf(tensors=[tensor("a" * 4096)]), says="a tensor's name of 4,096 bytes")

if __name__ == "__main__":
    ATTACK.main()
