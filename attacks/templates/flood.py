"""The template writes more than anybody can read."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{% for a in range(9999) %}{{ 'a' * 9999 }}{% endfor %}", says="was stopped")

if __name__ == "__main__":
    ATTACK.main()
