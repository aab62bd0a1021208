"""The model says nothing, and nobody decided."""

from __future__ import annotations

from attacks._model import hostile_teacher

ATTACK = hostile_teacher({"README.md": "# A model"}, says="it says nothing of its licence")

if __name__ == "__main__":
    ATTACK.main()
