"""An ONNX graph takes its weights from a file of the machine, by any way to write its place."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from attacks._model import model, onnx
from attacks.case import Attack
from attacks.workshop import each
from stillroom.inspection.inspect import require_safe

SAYS = "which is no plain name beside it"
PLACES = ("../../secret", "/etc/passwd", "..", "a/b", "\\\\server\\share", "C:secret", "x\x00y", "")


def _works(folder: Path) -> None:
    require_safe(model(folder, model__onnx=onnx("model.onnx_data"), model__onnx_data=bytes(16)))


def _attack(folder: Path) -> None:
    def case(number: int) -> None:
        require_safe(model(folder / str(number), model__onnx=onnx(PLACES[number]), model__onnx_data=bytes(16)))

    each((partial(case, number) for number in range(len(PLACES))), SAYS)


ATTACK = Attack(threat="import", says=SAYS, works=_works, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
