"""Two files differ in case only; on another system one of them replaces the other."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder({"Config.json": "{}"}, says="differ in nothing but case")

if __name__ == "__main__":
    ATTACK.main()
