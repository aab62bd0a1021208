"""`map` reads an attribute with underscores."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{{ messages|map(attribute='__class__')|list }}", says="which begins with an underscore")

if __name__ == "__main__":
    ATTACK.main()
