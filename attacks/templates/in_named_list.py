"""The template lies in a list of named ones, where only tools are looked for."""

from __future__ import annotations

from pathlib import Path

from attacks._model import TEMPLATE, model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "{{ cycler.__init__ }}"}]
    require_safe(model(folder, tokenizer_config__json={"chat_template": named}))


ATTACK = Attack(threat="template", says="reaches for `__init__`", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
