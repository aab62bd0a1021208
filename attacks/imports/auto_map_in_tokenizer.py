"""It is the tokenizer's config that asks for code."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tokenizer.Tokenizer", None]}}},
    says="tokenizer_config.json: `auto_map` asks",
)

if __name__ == "__main__":
    ATTACK.main()
