"""The template imports another one."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{% import 'other' as other %}{{ other.run() }}")


ATTACK = Attack(threat="template", says="uses import", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
