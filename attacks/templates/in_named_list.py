"""The template lies in a list of named ones, where only tools are looked for."""

from __future__ import annotations

from attacks._model import TEMPLATE, hostile_folder

ATTACK = hostile_folder(
    {
        "tokenizer_config.json": {
            "chat_template": [
                {"name": "default", "template": TEMPLATE},
                {"name": "tool_use", "template": "{{ cycler.__init__ }}"},
            ]
        }
    },
    says="reaches for `__init__`",
    threat="template",
)

if __name__ == "__main__":
    ATTACK.main()
