"""The same with an index instead of a dot."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{{ lipsum['__globals__']['os'] }}")


ATTACK = Attack(threat="template", says="reaches for `__globals__`", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
