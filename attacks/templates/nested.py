"""Brackets are nested until the parser's stack overflows."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{{ " + "(" * 50_000 + ")" * 50_000 + " }}", says="nested too deep")

if __name__ == "__main__":
    ATTACK.main()
