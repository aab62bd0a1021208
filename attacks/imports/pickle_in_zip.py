"""A file of torch's own kind, a zip archive with a pickle in it, is called tokenizer.model."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/version", "3")
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": 1}))
    place = model(folder, tokenizer__model=content.getvalue())
    require_safe(place)


ATTACK = Attack(threat="import", says="a pickle in it (archive/data.pkl)", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
