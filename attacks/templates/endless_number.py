"""A power takes for ever inside one instruction, where no interpreter looks at a clock."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{{ (7 ** 9999999 * messages|length) % 10 }}{{ 3 ** (messages|length * 99999999) % 7 }}")


ATTACK = Attack(threat="template", says="more than 2 seconds of the processor", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
