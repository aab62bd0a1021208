"""An adapter's config makes the loader fetch another model by name."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"adapter_config.json": {"base_model_name_or_path": "owner/other"}}, says="makes its reader load another model"
)

if __name__ == "__main__":
    ATTACK.main()
