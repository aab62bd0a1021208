"""The header claims more bytes than the file has."""

from __future__ import annotations

import struct

from attacks._model import hostile_folder

ATTACK = hostile_folder({"model.safetensors": struct.pack("<Q", 4096) + b"{}"}, says="behind the file's end")

if __name__ == "__main__":
    ATTACK.main()
