"""A row's key is there twice in an operator's table."""

from __future__ import annotations

from pathlib import Path

from attacks._model import gate, works_terms
from attacks.case import Attack


def _attack(folder: Path) -> None:
    path = folder / "table.yaml"
    path.write_text(
        "format: 1\nversion: '1'\ndate: 2026-11-24\nrows:\n- {id: a, outputs: allowed, outputs: forbidden}\n"
    )
    gate(folder, terms={"tables": [str(path)]})


ATTACK = Attack(threat="terms", says="the key `outputs` is there twice", works=works_terms, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
