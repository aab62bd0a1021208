"""The student's name hides what it was made from."""

from __future__ import annotations

from pathlib import Path

from attacks._model import llama_3, works_terms
from attacks.case import Attack
from stillroom.terms.gate import require_packable


def _attack(folder: Path) -> None:
    verdict = llama_3(folder)
    require_packable(verdict, "my-own-model")


ATTACK = Attack(threat="terms", says="has to begin with `Llama`", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
