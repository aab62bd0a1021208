"""The header claims to be larger than any memory."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder({"model.safetensors": b"\xff" * 7 + b"\x7f" + bytes(64)}, says="the header would have")

if __name__ == "__main__":
    ATTACK.main()
