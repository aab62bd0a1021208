"""The config names an attention kernel on a hub, which the loader would fetch and run."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"config.json": {"model_type": "llama", "attn_implementation": "owner/kernel:forward"}}, says="names code on a hub"
)

if __name__ == "__main__":
    ATTACK.main()
