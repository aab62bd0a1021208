"""The folder brings modelling code, for loaders that trust it."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder({"modeling_llama.py": "import os\n"}, says="brings its own code")

if __name__ == "__main__":
    ATTACK.main()
