"""The template writes more than anybody can read."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    flood = "{% for a in range(9999) %}{{ 'a' * 9999 }}{% endfor %}"
    render(flood)


ATTACK = Attack(threat="template", says="was stopped", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
