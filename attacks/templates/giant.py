"""The template itself is larger than any in use."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{{ 'a' }}" * 100_000)


ATTACK = Attack(threat="template", says="a chat template of", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
