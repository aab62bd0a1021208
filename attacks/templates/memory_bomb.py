"""One expression takes ten gigabytes; it is folded before anything is rendered."""

from __future__ import annotations

from attacks._model import hostile_template

ATTACK = hostile_template("{{ 'a' * 10 ** 10 }}", says="more than 512 MiB of memory")

if __name__ == "__main__":
    ATTACK.main()
