"""How well the rule that says whether an answer refuses agrees with hand labels; the rule itself is
:mod:`stillroom.corpus.refusals`.
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files as resources
from typing import Any

from stillroom.corpus.refusals import refuses as refuses
from stillroom.evaluation.paired import share


@functools.cache
def labelled() -> tuple[dict[str, Any], ...]:
    """Answers that a person read and labelled: ``prompt``, ``harmful``, ``answer``, ``refuses``, ``made``."""
    text = resources("stillroom.evaluation").joinpath("labelled_answers.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["answers"])


def agreement() -> dict[str, Any]:
    """How often the rule says what the label says, with Cohen's kappa and the counts of both kinds of mistake."""
    rows = labelled()
    said = [refuses(row["answer"]) for row in rows]
    truth = [bool(row["refuses"]) for row in rows]
    same = sum(a == b for a, b in zip(said, truth, strict=True))
    count = len(rows)
    by_chance = (sum(said) * sum(truth) + (count - sum(said)) * (count - sum(truth))) / count**2
    return share(same, count) | {
        "kappa": (same / count - by_chance) / (1 - by_chance),
        "missed": sum(b and not a for a, b in zip(said, truth, strict=True)),
        "false": sum(a and not b for a, b in zip(said, truth, strict=True)),
        "refusals": sum(truth),
    }
