"""Loops in loops turn ten thousand million times."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    render(loop)


ATTACK = Attack(threat="template", says="more than 2 seconds of the processor", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
