"""A text reaches for attributes when it is formatted."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{{ '{0.__class__}'.format(messages) }}")


ATTACK = Attack(threat="template", says="formats a text that reaches", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
