"""The template reads another file."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{% include '/etc/passwd' %}", says="uses include")

if __name__ == "__main__":
    ATTACK.main()
