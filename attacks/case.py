"""What every attack is: a normal case that must pass, and an attack that must be refused.

A file ``attacks/KIND/NAME.py`` opens with a docstring that says what the attacker can do and wants, and defines::

    ATTACK = Attack(
        threat="rollback",                          # a line of the attack table, or "import", "template", "terms"
        says="older than the highest release",      # part of the message of the refusal, the attack's own
        works=works,                                # works(folder): the case without an attack; raises nothing
        attack=attack,                              # attack(folder): must raise a StillroomError whose message has `says`
    )

    if __name__ == "__main__":
        ATTACK.main()

Both functions get an empty folder of their own. What they prepare must succeed by itself: any other exception than a
:class:`StillroomError` means that the attack is broken, not that it was refused, and counts against us. An ``attack`` that
ends without an exception has succeeded. Where the attack is one change to a package, one
template, one folder or one file, :func:`.workshop.changed_package` and the ``hostile_…`` functions of :mod:`._model` make it.
``.venv/bin/python -m attacks.KIND.NAME`` runs one, ``.venv/bin/python -m attacks.run`` all of them, or those named.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stillroom.core.errors import StillroomError

SCRATCH = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Thousands of small files live for a moment: in memory where there is such a place."""


@dataclass(frozen=True)
class Outcome:
    """What became of one attack.

    Attributes:
        refused: Whether the normal case passed and the attack was refused with its own message.
        words: The refusal's first line, or what went wrong.
    """

    refused: bool
    words: str


@dataclass(frozen=True)
class Attack:
    """One attack and its normal case; see the module."""

    threat: str
    says: str
    works: Callable[[Path], None]
    attack: Callable[[Path], object]

    def run(self) -> Outcome:
        """Do both, each in an empty folder of its own."""
        with tempfile.TemporaryDirectory(prefix="attack-", dir=SCRATCH) as folder:
            normal, attacked = Path(folder) / "normal", Path(folder) / "attacked"
            normal.mkdir()
            attacked.mkdir()
            try:
                self.works(normal)
            except Exception:
                return Outcome(False, f"the normal case did not pass:\n{traceback.format_exc()}")
            try:
                self.attack(attacked)
            except StillroomError as error:
                if self.says not in str(error):
                    return Outcome(False, f"refused, but not with its own message ({self.says!r}): {error}")
                return Outcome(True, error.what)
            except Exception:
                return Outcome(False, f"something other than a Stillroom error came out:\n{traceback.format_exc()}")
            return Outcome(False, "the attack SUCCEEDED")

    def main(self) -> None:
        """Run this attack alone; exit code 1 when it is not refused."""
        outcome = self.run()
        print(f"{'refused' if outcome.refused else 'FAILED'}: {outcome.words}")
        sys.exit(0 if outcome.refused else 1)
