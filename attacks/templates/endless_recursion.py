"""A macro calls itself."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template(
    "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", says="calls itself without end"
)

if __name__ == "__main__":
    ATTACK.main()
