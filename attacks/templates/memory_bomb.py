"""One expression takes ten gigabytes; it is folded before anything is rendered."""

from __future__ import annotations

from pathlib import Path

from attacks._model import render, works_template
from attacks.case import Attack


def _attack(_: Path) -> None:
    render("{{ 'a' * 10 ** 10 }}")


ATTACK = Attack(threat="template", says="more than 512 MiB of memory", works=works_template, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
