"""Lists grow until memory ends."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template(
    "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    says="more than 512 MiB of memory",
)

if __name__ == "__main__":
    ATTACK.main()
