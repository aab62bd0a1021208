"""A zip archive is hidden behind the last tensor: the file is both."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from attacks._model import gguf, look_at_gguf, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    look_at_gguf(folder, gguf(data=bytes(64) + content.getvalue()))


ATTACK = Attack(threat="import", says="bytes are behind the last tensor", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
