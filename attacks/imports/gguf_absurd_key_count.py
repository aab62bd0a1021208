"""The header claims 2^40 keys."""

from __future__ import annotations

from attacks._model import gguf, hostile_gguf

ATTACK = hostile_gguf(gguf(counts=(2, 1 << 40)), says="an absurd count of keys")

if __name__ == "__main__":
    ATTACK.main()
