"""A tensor of an ONNX graph begins inside the file of weights and ends behind it."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, onnx
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _works(folder: Path) -> None:
    require_safe(model(folder, model__onnx=onnx("model.onnx_data"), model__onnx_data=bytes(16)))


def _attack(folder: Path) -> None:
    require_safe(model(folder, model__onnx=onnx("model.onnx_data", offset=8), model__onnx_data=bytes(16)))


ATTACK = Attack(threat="import", says="goes past the end of", works=_works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
