"""The tokenizer's model is a pickle under the name that SentencePiece files have."""

from __future__ import annotations

import pickle

from attacks._model import hostile_folder

ATTACK = hostile_folder({"tokenizer.model": pickle.dumps(["a", "b"], protocol=4)}, says="tokenizer.model: a pickle")

if __name__ == "__main__":
    ATTACK.main()
