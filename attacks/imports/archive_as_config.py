"""An archive is called a config."""

from __future__ import annotations

import gzip

from attacks._model import hostile_folder

ATTACK = hostile_folder({"extra.json": gzip.compress(b"{}")}, says="a gzip archive")

if __name__ == "__main__":
    ATTACK.main()
