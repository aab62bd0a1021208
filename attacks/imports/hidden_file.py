"""A hidden file rides along."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder({".pth": "import os"}, says="a hidden file")

if __name__ == "__main__":
    ATTACK.main()
