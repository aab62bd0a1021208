"""Measuring: each metric is done once, and kept with its inputs.

A finished metric is one file in the run's folder ``measures``. It holds the digests of everything that its numbers
depend on; a restart reads it where they still hold and measures again where they do not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from stillroom.core import files
from stillroom.evaluation.bench import Bench
from stillroom.evaluation.metric import Metric, Result
from stillroom.evaluation.registry import names, require_metrics
from stillroom.recipe.section import for_digest

FORMAT = 1


def inputs_of(bench: Bench, spec: Metric) -> dict[str, str]:
    """Digests of everything that a metric's numbers depend on."""
    keys = {"bootstrap_samples", "confidence", *spec.settings}
    settings = {key: value for key, value in for_digest(bench.config).items() if key in keys} | spec.extra_inputs(bench)
    return {
        "settings": files.digest_json([spec.name, spec.version, settings, bench.seed]),
        "text": bench.text_digest,
        **{name: bench.subjects[name].digest for name in bench.names},
    }


def do_measures(bench: Bench, wanted: Iterable[str]) -> dict[str, Result]:
    """Results by name; what was finished before for the same inputs is read, not measured again."""
    found = {}
    for spec in require_metrics(wanted):
        if bench.listed is not None and not spec.with_endpoint:
            bench.progress.say(f"  {spec.name}: not measured: it needs the teacher itself, which is behind an endpoint")
            continue
        record = finished(bench, spec)
        if record is None:
            bench.progress.say(f"  {spec.name}: {spec.what}")
            inputs = inputs_of(bench, spec)
            started = time.monotonic()
            result = spec.measure(bench)
            record = {
                "format": FORMAT,
                "measure": spec.name,
                "inputs": inputs,
                "seed": bench.seed,
                "seconds": round(time.monotonic() - started, 3),
                "result": result,
            }
            record["digest"] = _own_digest(record)
            files.write_json(bench.folder / f"{spec.name}.json", record)
        else:
            bench.progress.say(f"  {spec.name}: measured before")
        found[spec.name] = record["result"]
    return found


def finished(bench: Bench, spec: Metric) -> dict[str, Any] | None:
    """The record of a metric that was finished for the present inputs, or None."""
    path = bench.folder / f"{spec.name}.json"
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = files.read_json(path)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("result"), dict):
        return None
    # Those of 0.1.0 have no digest of their own.
    if "digest" in record and record["digest"] != _own_digest(record):
        return None
    if record.get("format") != FORMAT or record.get("inputs") != inputs_of(bench, spec):
        return None
    return record


def _own_digest(record: dict[str, Any]) -> str:
    """SHA-256 of a record without this digest."""
    held = {key: value for key, value in record.items() if key != "digest"}
    return files.digest_bytes(json.dumps(held, sort_keys=True).encode())


def finished_besides(bench: Bench, wanted: Iterable[str]) -> dict[str, Result]:
    """Results of metrics other than these that were finished for the present inputs, in the order of metrics."""
    left = set(names()) - set(wanted)
    present = [name for name in left if (bench.folder / f"{name}.json").is_file()]
    found = {}
    for spec in require_metrics(present):
        record = finished(bench, spec)
        if record is not None:
            found[spec.name] = record["result"]
    return found
