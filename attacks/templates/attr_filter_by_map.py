"""`map` applies the filter `attr` by its name."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{{ [messages]|map('attr', 'x')|list }}", says="uses the filter `attr`")

if __name__ == "__main__":
    ATTACK.main()
