"""A macro calls itself."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}")


ATTACK = Attack(threat="template", says="calls itself without end", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
