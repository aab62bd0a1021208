"""The weights come as a pickle beside the safetensors, for whoever prefers them."""

from __future__ import annotations

import pickle

from attacks._model import hostile_folder

ATTACK = hostile_folder({"pytorch_model.bin": pickle.dumps({"weight": 1})}, says="a pickle can run any code")

if __name__ == "__main__":
    ATTACK.main()
