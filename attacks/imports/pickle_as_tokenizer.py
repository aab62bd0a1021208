"""The tokenizer's model is a pickle under the name that SentencePiece files have."""

from __future__ import annotations

import pickle
from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, tokenizer__model=pickle.dumps(["a", "b"], protocol=4))
    require_safe(place)


ATTACK = Attack(threat="import", says="tokenizer.model: a pickle", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
