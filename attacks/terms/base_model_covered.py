"""The card says MIT; what the model was made from is only named further down."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, model, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    card = "---\nlicense: mit\nbase_model: meta-llama/Llama-2-7b-hf\n---\n"
    gate(folder, model(folder, README__md=card))


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_terms, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
