"""A metadata key is there twice: the licence that one reader shows is not the one that another reads."""

from __future__ import annotations

from attacks._model import STRING, gguf, hostile_gguf, key, plain_keys, text

ATTACK = hostile_gguf(
    gguf([*plain_keys(), key("general.license", STRING, text("mit"))]), says="the key 'general.license' is there twice"
)

if __name__ == "__main__":
    ATTACK.main()
