"""The chat template inside a GGUF file reaches for the interpreter."""

from __future__ import annotations

from pathlib import Path

from attacks._model import STRING, gguf, key, look_at_gguf, plain_keys, text, works_gguf
from attacks.case import Attack


def _attack(folder: Path) -> None:
    keys = [part for part in plain_keys() if b"chat_template" not in part]
    evil = key("tokenizer.chat_template", STRING, text("{{ ''.__class__.__mro__ }}"))
    look_at_gguf(folder, gguf([*keys, evil]))


ATTACK = Attack(threat="import", says="which begins with an underscore", works=works_gguf, attack=_attack)

if __name__ == "__main__":
    ATTACK.main()
