"""Lists grow until memory ends."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    text = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
    render(text)


ATTACK = Attack(threat="template", says="more than 512 MiB of memory", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
