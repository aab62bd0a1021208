"""The config names classes of the folder's own code."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"config.json": {"model_type": "nobodys", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}},
    says="`auto_map` asks for the model's own code",
)

if __name__ == "__main__":
    ATTACK.main()
