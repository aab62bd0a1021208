"""Pickles of protocol 0 are plain text without a magic; this one is called merges.txt and would call os.system."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    place = model(folder, merges__txt=b"cos\nsystem\n(S'true'\ntR.")
    require_safe(place)


ATTACK = Attack(threat="import", says="a pickle of an old protocol", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
