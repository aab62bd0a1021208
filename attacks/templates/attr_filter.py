"""The filter `attr` reaches past the sandbox's rule for dots."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{{ messages|attr('append') }}", says="uses the filter `attr`")

if __name__ == "__main__":
    ATTACK.main()
