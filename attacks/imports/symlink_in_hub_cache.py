"""The folder has the shape of the hub's cache, where links are usual; this one leads out of its blobs."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    snapshots = folder / "models--owner--name" / "snapshots"
    place = model(snapshots).rename(snapshots / "0123abcd")
    blobs = snapshots.parent / "blobs"
    blobs.mkdir()
    (folder / "secret.json").write_text("{}")
    (blobs / "1").symlink_to(folder / "secret.json")
    (place / "special_tokens_map.json").symlink_to(blobs / "1")
    require_safe(place)


ATTACK = Attack(threat="import", says="a symbolic link, which can lead anywhere", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
