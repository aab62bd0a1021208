"""An ONNX graph says twice where a tensor is stored: readers differ on which one holds."""

from __future__ import annotations

from pathlib import Path

from attacks._model import model, onnx, proto
from attacks.case import Attack
from stillroom.inspection.inspect import require_safe


def _works(folder: Path) -> None:
    require_safe(model(folder, model__onnx=onnx("model.onnx_data"), model__onnx_data=bytes(16)))


def _attack(folder: Path) -> None:
    again = proto(13, proto(1, "location") + proto(2, "../../secret"))
    place = model(folder, model__onnx=onnx("model.onnx_data", more=again), model__onnx_data=bytes(16))
    require_safe(place)


ATTACK = Attack(threat="import", says="says twice where a tensor is stored", works=_works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
