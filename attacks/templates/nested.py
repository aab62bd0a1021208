"""Brackets are nested until the parser's stack overflows."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{{ " + "(" * 50_000 + ")" * 50_000 + " }}")


ATTACK = Attack(threat="template", says="nested too deep", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
