"""An operator's table says that it is allowed."""

from __future__ import annotations

from pathlib import Path

import yaml

from attacks._model import gate, llama_2, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    row = {
        "id": "generous",
        "title": "All is allowed",
        "kind": "licence",
        "licences": ["llama2"],
        "outputs": "allowed",
        "clause": "none at all",
        "source": "myself",
        "read": "2026-11",
        "confidence": "primary",
    }
    table = {"format": 1, "version": "1", "date": "2026-11-24", "rows": [row]}
    (folder / "table.yaml").write_text(yaml.safe_dump(table))
    gate(folder, llama_2(folder), terms={"tables": [str(folder / "table.yaml")]})


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_terms, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
