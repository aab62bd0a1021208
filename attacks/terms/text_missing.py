"""The package goes out without the licence that it has to carry."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, model, works_terms
from attacks.case import Attack
from stillroom.terms.gate import require_packable


def _attack(folder: Path) -> None:
    verdict = gate(folder, model(folder, README__md="---\nlicense: gemma\n---\n"))
    require_packable(verdict, "student")


ATTACK = Attack(threat="terms", says="has to carry the text of", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
