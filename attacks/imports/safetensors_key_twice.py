"""A tensor's name is there twice in the header; the common library takes the last one and says nothing."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, safetensors, works_folder
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _attack(folder: Path) -> None:
    entry = b'{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    require_safe(model(folder, model__safetensors=safetensors(b'{"a":' + entry + b',"a":' + entry + b"}", bytes(16))))


ATTACK = Attack(threat="import", says="the key 'a' is there twice", works=works_folder, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
