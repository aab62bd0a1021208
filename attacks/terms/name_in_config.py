"""The card is gone; the config still says which checkpoint it was."""

from __future__ import annotations

from attacks._model import OWN, hostile_teacher

ATTACK = hostile_teacher(
    {
        "config.json": {"model_type": "llama", "_name_or_path": "meta-llama/Llama-2-13b-chat-hf"},
        "README.md": "# A model",
    },
    says="Llama 2 Community License: training other models",
    terms={"decisions": [OWN]},
)

if __name__ == "__main__":
    ATTACK.main()
