"""The template reads another file."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{% include '/etc/passwd' %}")


ATTACK = Attack(threat="template", says="uses include", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
