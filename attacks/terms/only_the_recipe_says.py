"""The model says nothing; the recipe's word alone would be a way past the decision."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate_with, model, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    bare = model(folder, README__md="# A model")
    gate_with(folder, {"kind": "huggingface", "name": str(bare), "licence": "mit"})


ATTACK = Attack(threat="terms", says="only the recipe does", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
