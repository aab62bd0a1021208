"""A sign in the name turns the reading direction, so that it looks like another one."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder({"weights\u202esnosj.json": "{}"}, says="does not hold on every system")

if __name__ == "__main__":
    ATTACK.main()
