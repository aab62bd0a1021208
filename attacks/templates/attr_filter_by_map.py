"""`map` applies the filter `attr` by its name."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{{ [messages]|map('attr', 'x')|list }}")


ATTACK = Attack(threat="template", says="uses the filter `attr`", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
