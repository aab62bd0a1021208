"""`map` reads an attribute with underscores."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{{ messages|map(attribute='__class__')|list }}")


ATTACK = Attack(threat="template", says="which begins with an underscore", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
