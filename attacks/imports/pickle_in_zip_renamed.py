"""The pickle inside the archive has an innocent name too."""

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
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README", "tokens")
        archive.writestr("tokens.txt", pickle.dumps(list(range(1000))))
    place = model(folder, tokens__txt=content.getvalue())
    require_safe(place)


ATTACK = Attack(
    threat="import", says="a zip archive with a pickle in it (tokens.txt)", works=works_folder, attack=_attack
)

if __name__ == "__main__":
    ATTACK.main()
