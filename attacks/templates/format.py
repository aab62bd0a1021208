"""A text reaches for attributes when it is formatted."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{{ '{0.__class__}'.format(messages) }}", says="formats a text that reaches")

if __name__ == "__main__":
    ATTACK.main()
