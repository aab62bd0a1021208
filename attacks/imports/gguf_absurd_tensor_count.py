"""The header claims 2^60 tensors, and a reader reserves room for them."""

from __future__ import annotations

from attacks._model import gguf, hostile_gguf

ATTACK = hostile_gguf(gguf(counts=(1 << 60, 6)), says="an absurd count of tensors")

if __name__ == "__main__":
    ATTACK.main()
