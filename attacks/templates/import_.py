"""The template imports another one."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{% import 'other' as other %}{{ other.run() }}", says="uses import")

if __name__ == "__main__":
    ATTACK.main()
