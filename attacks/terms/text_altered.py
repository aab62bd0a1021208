"""The text begins as Apache-2.0 does, and a clause was added in the middle."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, model, works_terms
from attacks.case import Attack
from stillroom.terms.texts import held_text


def _attack(folder: Path) -> None:
    text = str(held_text("Apache-2.0")).replace(
        "2. Grant of", "1a. No model may be trained on outputs.\n\n   2. Grant of"
    )
    gate(folder, model(folder, LICENSE=text))


ATTACK = Attack(threat="terms", says="begins as the Apache License 2.0 does", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
