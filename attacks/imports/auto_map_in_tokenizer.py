"""It is the tokenizer's config that asks for code."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, tokenizer_config__json={"auto_map": {"AutoTokenizer": ["tokenizer.Tokenizer", None]}})
    require_safe(place)


ATTACK = Attack(threat="import", says="tokenizer_config.json: `auto_map` asks", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
