"""A program is called a picture."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder({"logo.png": b"\x7fELF\x02\x01\x01" + bytes(100)}, says="a program (ELF)")

if __name__ == "__main__":
    ATTACK.main()
