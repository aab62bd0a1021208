"""How many targets of a finished corpus lack what came before them: none of those that are made now, most of 0.1.0's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stillroom.core import files
from stillroom.corpus.sequences import IGNORED, Sequences, targets_without_context
from stillroom.corpus.split import SPLITS

MUCH = 0.1
"""Share of targets without context from which on it is warned of."""


@dataclass(frozen=True)
class Context:
    """One split.

    Attributes:
        targets: Positions with a target.
        missing: Those of them with neither their document's beginning nor enough tokens before them in sight.
    """

    targets: int
    missing: int

    @property
    def share(self) -> float:
        """The share of targets that lack their context."""
        return self.missing / max(1, self.targets)


def context_of(folder: Path) -> dict[str, Context]:
    """Targets without context of each split: by the data manifest, or counted in a corpus of 0.1.0, whose has no count.

    Args:
        folder: The folder of the stage `corpus`.

    Raises:
        CorpusError: A split cannot be read.
    """
    ledger = files.read_json(folder / "ledger.json")["splits"]
    found = {}
    for name in SPLITS:
        counted = ledger[name].get("targets_without_context")
        if counted is None:
            rows = Sequences.load(folder / f"{name}.safetensors")
            found[name] = Context(int((rows.targets != IGNORED).sum()), targets_without_context(rows))
        else:
            found[name] = Context(ledger[name]["targets"], counted)
    return found


def warning_of(context: dict[str, Context]) -> str | None:
    """A sentence where much is missing, or None."""
    worst = max(context, key=lambda name: context[name].share)
    if context[worst].share <= MUCH:
        return None
    return (
        f"{context[worst].share:.0%} of the learned tokens of the {worst} split are without their document's beginning or "
        "the text before them: the corpus was made by an earlier release. Build it again."
    )
