"""The text begins as Apache-2.0 does, and a clause was added in the middle."""

from __future__ import annotations

from attacks._model import hostile_teacher
from stillroom.terms.texts import held_text

ATTACK = hostile_teacher(
    {
        "LICENSE": str(held_text("Apache-2.0")).replace(
            "2. Grant of", "1a. No model may be trained on outputs.\n\n   2. Grant of"
        )
    },
    says="begins as the Apache License 2.0 does",
)

if __name__ == "__main__":
    ATTACK.main()
