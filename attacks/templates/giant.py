"""The template itself is larger than any in use."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{{ 'a' }}" * 100_000, says="a chat template of")

if __name__ == "__main__":
    ATTACK.main()
