"""The key is written with an escape, so that a search for its letters finds nothing."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder(
    {"config.json": rb'{"model_type": "nobodys", "auto\u005fmap": {"AutoConfig": "owner/code--config.Config"}}'},
    says="`auto_map` asks for the model's own code",
)

if __name__ == "__main__":
    ATTACK.main()
