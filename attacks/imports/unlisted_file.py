"""A file that no model needs rides along."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder({"payload.dat": b"anything"}, says="not a file that a model needs")

if __name__ == "__main__":
    ATTACK.main()
