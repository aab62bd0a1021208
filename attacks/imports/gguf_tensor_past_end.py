"""A tensor's offset points behind the file."""

from __future__ import annotations

from attacks._model import gguf, hostile_gguf, tensor

ATTACK = hostile_gguf(gguf(tensors=[tensor("a.weight", offset=1 << 40)]), says="behind the file's end")

if __name__ == "__main__":
    ATTACK.main()
