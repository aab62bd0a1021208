"""The template climbs from a text to its class and on to the interpreter."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{{ ''.__class__.__mro__[1].__subclasses__() }}", says="which begins with an underscore")

if __name__ == "__main__":
    ATTACK.main()
