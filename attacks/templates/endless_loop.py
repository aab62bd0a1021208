"""Loops in loops turn ten thousand million times."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template(
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    says="more than 2 seconds of the CPU",
)

if __name__ == "__main__":
    ATTACK.main()
