"""Variables of the environment and keys of the recipe that sound like switches."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from attacks._model import gate, llama_2, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    names = [
        "STILLROOM_SKIP_TERMS",
        "STILLROOM_TERMS",
        "STILLROOM_FORCE",
        "SKIP_TERMS",
        "FORCE",
        "CI",
        "PYTEST_CURRENT_TEST",
    ]
    with mock.patch.dict(os.environ, dict.fromkeys(names, "1")):
        gate(folder, llama_2(folder))


ATTACK = Attack(
    threat="terms", says="Llama 2 Community License: training other models", works=works_terms, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
