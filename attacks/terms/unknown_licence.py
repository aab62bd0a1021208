"""Nobody knows the licence that the model states."""

from __future__ import annotations

from attacks._model import hostile_teacher

ATTACK = hostile_teacher(
    {"README.md": "---\nlicense: other\nlicense_name: frontier-2\n---\n"}, says="which no table knows"
)

if __name__ == "__main__":
    ATTACK.main()
