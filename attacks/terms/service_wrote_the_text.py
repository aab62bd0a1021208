"""The text was written by a closed service, and the recipe says so."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    gate(folder, corpus={"sources": [{"kind": "python_docs", "generated_by": "gpt-4o-2024-11-20"}]})


ATTACK = Attack(threat="terms", says="OpenAI services: training other models", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
