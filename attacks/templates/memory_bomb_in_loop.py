"""A text doubles sixty times."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}")


ATTACK = Attack(threat="template", says="more than 512 MiB of memory", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
