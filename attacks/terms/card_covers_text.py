"""The model card says Apache-2.0, and the licence's text in the folder is that of Llama 2."""

from __future__ import annotations

from attacks._model import hostile_teacher

ATTACK = hostile_teacher(
    {"LICENSE": "LLAMA 2 COMMUNITY LICENSE AGREEMENT\nLlama 2 Version Release Date: July 18, 2023\n"},
    says="Llama 2 Community License: training other models",
)

if __name__ == "__main__":
    ATTACK.main()
