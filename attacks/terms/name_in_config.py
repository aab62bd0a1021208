"""The card is gone; the config still says which checkpoint it was."""

from __future__ import annotations

from pathlib import Path

from attacks._model import OWN, gate, model, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    config = {"model_type": "llama", "_name_or_path": "meta-llama/Llama-2-13b-chat-hf"}
    gate(folder, model(folder, config__json=config, README__md="# A model"), terms={"decisions": [OWN]})


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_terms, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
