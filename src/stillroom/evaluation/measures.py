"""The measures by name, and doing them: each is imported when it is asked for, done once, and kept with its inputs.

A finished measure is one file in the run's folder ``measures``. It holds the digests of everything that its numbers
depend on; a restart reads it where they still hold and measures again where they do not.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.evaluation.bench import Bench

FORMAT = 1


@dataclass(frozen=True)
class MeasureSpec:
    """A measure.

    Attributes:
        name: Its name, and that of its file.
        function: ``module:function`` inside ``stillroom.evaluation``; takes a :class:`Bench`, gives JSON.
        what: One sentence.
        settings: Keys of the recipe's section that it reads, besides those of intervals.
        version: Raised when its numbers come to mean something else.
    """

    name: str
    function: str
    what: str
    settings: tuple[str, ...] = ()
    version: int = 1

    def load(self) -> Callable[[Bench], dict[str, Any]]:
        """Import the function."""
        module, _, name = self.function.partition(":")
        found: Callable[[Bench], dict[str, Any]] = getattr(
            importlib.import_module(f"stillroom.evaluation.{module}"), name
        )
        return found


MEASURES: dict[str, MeasureSpec] = {
    spec.name: spec
    for spec in (
        MeasureSpec(
            "fidelity", "fidelity:measure_fidelity", "how closely students follow their teacher on held-out text"
        ),
        MeasureSpec(
            "languages",
            "metrics.languages:measure_languages",
            "what is kept of each language",
            ("languages",),
        ),
        MeasureSpec("cost", "metrics.cost:measure_cost", "bytes, memory, load time, speed, energy", ("speed_tokens",)),
        MeasureSpec("tasks", "metrics.tasks:measure_tasks", "problems with checked answers", ("tasks",)),
        MeasureSpec(
            "safeguards", "metrics.safeguards:measure_safeguards", "what is refused, and what need not be", ("safeguards",)
        ),
        MeasureSpec(
            "behaviour",
            "metrics.behaviour:measure_behaviour",
            "memorised text, repetition, empty and truncated answers",
            ("behaviour",),
        ),
    )
}


def require_measures(names: Iterable[str]) -> list[MeasureSpec]:
    """The measures of these names.

    Raises:
        UsageError: One is not known; names those there are.
    """
    names = list(names)
    for name in names:
        if name not in MEASURES:
            raise UsageError(f"There is no measure `{name}`.", f"Known: {', '.join(MEASURES)}.")
    return [MEASURES[name] for name in MEASURES if name in names]


def inputs_of(bench: Bench, spec: MeasureSpec) -> dict[str, str]:
    """Digests of everything that a measure's numbers depend on."""
    keys = {"bootstrap_samples", "confidence", *spec.settings}
    settings = bench.config.model_dump(mode="json", include=keys)
    if spec.name == "languages":
        from stillroom.evaluation.metrics.languages import codes_of

        settings["codes"] = codes_of(bench)
        settings["texts"] = [
            files.digest_file(text.path) for text in bench.config.languages.texts if text.path.is_file()
        ]
    if spec.name in ("tasks", "safeguards"):
        named = bench.config.tasks.files if spec.name == "tasks" else bench.config.safeguards.files
        settings["files"] = [files.digest_file(path) for path in named if path.is_file()]
    if spec.name == "tasks" and bench.config.tasks.include_path is not None:
        from stillroom.evaluation.tasks.harness import folder_digest

        settings["include"] = folder_digest(bench.config.tasks.include_path)
    return {
        "settings": files.digest_json([spec.name, spec.version, settings, bench.seed]),
        "text": bench.text_digest,
        **{name: bench.subjects[name].digest for name in bench.names},
    }


def do_measures(bench: Bench, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Results by name; what was finished before for the same inputs is read, not measured again."""
    found = {}
    for spec in require_measures(names):
        record = finished(bench, spec)
        if record is None:
            bench.progress.say(f"  {spec.name}: {spec.what}")
            inputs = inputs_of(bench, spec)
            started = time.monotonic()
            result = spec.load()(bench)
            record = {
                "format": FORMAT,
                "measure": spec.name,
                "inputs": inputs,
                "seed": bench.seed,
                "seconds": round(time.monotonic() - started, 3),
                "result": result,
            }
            files.write_json(bench.folder / f"{spec.name}.json", record)
        else:
            bench.progress.say(f"  {spec.name}: measured before")
        found[spec.name] = record["result"]
    return found


def finished(bench: Bench, spec: MeasureSpec) -> dict[str, Any] | None:
    """The record of a measure that was finished for the present inputs, or None."""
    path = bench.folder / f"{spec.name}.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = files.read_json(path)
    if record.get("format") != FORMAT or record.get("inputs") != inputs_of(bench, spec):
        return None
    return record
