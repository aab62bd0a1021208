"""The card says MIT; what the model was made from is only named further down."""

from __future__ import annotations

from attacks._model import hostile_teacher

ATTACK = hostile_teacher(
    {"README.md": "---\nlicense: mit\nbase_model: meta-llama/Llama-2-7b-hf\n---\n"},
    says="Llama 2 Community License: training other models",
)

if __name__ == "__main__":
    ATTACK.main()
