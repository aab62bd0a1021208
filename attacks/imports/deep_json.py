"""A config is nested so deep that a reader's stack overflows."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder({"config.json": b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"}, says="nested too deep")

if __name__ == "__main__":
    ATTACK.main()
