"""A licence for non-commercial use, and a student that is for sale."""

from __future__ import annotations

from attacks._model import hostile_teacher

ATTACK = hostile_teacher(
    {"README.md": "---\nlicense: other\nlicense_name: qwen-research\n---\n"}, says="for non-commercial use only"
)

if __name__ == "__main__":
    ATTACK.main()
