"""The template climbs from a text to its class and on to the interpreter."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{{ ''.__class__.__mro__[1].__subclasses__() }}")


ATTACK = Attack(threat="template", says="which begins with an underscore", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
