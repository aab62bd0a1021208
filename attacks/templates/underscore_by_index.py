"""The same with an index instead of a dot."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{{ lipsum['__globals__']['os'] }}", says="reaches for `__globals__`")

if __name__ == "__main__":
    ATTACK.main()
