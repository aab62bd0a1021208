"""Pickles of protocol 0 are plain text without a magic; this one is called merges.txt and would call os.system."""

from __future__ import annotations

from attacks._model import hostile_folder

ATTACK = hostile_folder({"merges.txt": b"cos\nsystem\n(S'true'\ntR."}, says="a pickle of an old protocol")

if __name__ == "__main__":
    ATTACK.main()
