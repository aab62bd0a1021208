"""Campaigns in request logs: false alarms of generated months, detection by kind of campaign, wrappers, memory and rates.

    .venv/bin/python -m benchmarks.guard_campaigns [--quick] [--part NAME …] [--work FOLDER] [--months N] [--rows N] \
        [--scale N] --json FILE    (extra `guard`)

Finished parts (``months``, ``large``, ``merge``, ``held_out``), and every month of them, are kept in ``--work``: an interrupted
benchmark goes on, and each part runs alone. The figures are those of all that is done.

The baseline is made of benign months alone. The months that are reported have other seeds than those, and other seeds than the
months on which the detector was tuned (4000 and above; see docs/benchmarks/guard-campaigns.md). The generator and the detector
were written by the same author, so what is reported is how the detector behaves on these kinds of traffic, not a rate on yours.

- ``false_alarms_worst``: honest clusters reported in the worst month; ``stated_bound`` is their bound, and
  ``months_within_bound`` of ``months`` kept it. A cluster counts as honest where no account of it belongs to a campaign.
- ``wrappers_accused``: honest wrappers and resellers of whom an account is in any reported cluster, a campaign's too, over
  all months. ``honest_accounts_accused``: honest accounts in any reported cluster.
- ``found_NAME``, ``delay_NAME``: share of the months in which at least half of a campaign's accounts are in reported clusters,
  and the median of days from its first request to the end of the day of the first report (null: never found).
- ``held_out_false_alarms_worst``: the same bound where a kind of honest traffic is in no benign month, by kind, worst.
- ``store_rows``, ``peak_memory_gb``, ``rows_per_second``: one month of ``--scale`` rows from Parquet to findings, on one
thread,
  in a process of its own. ``json_rows_per_second``: intake of JSON lines with text. ``merge_equal``: whether the reductions of
  five shards, added up, have the content of those of one pass; ``merge_equal_large``: the same of the large month, in four.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.budget import own_peak_bytes
from stillroom.core import files
from stillroom.guard.campaign_baseline import Baseline, calibrate, read_baseline
from stillroom.guard.campaign_watch import findings, watch
from stillroom.guard.intake import intake
from stillroom.guard.log_store import Store, create_store, merge, open_store
from stillroom.guard.traffic import CAMPAIGNS, SHARES, Campaign, make_month, write_month

MONTH = "2026-01"
BENIGN_SEED, REPORTED_SEED = 1_000, 9_100
BOUND = 1.0
WRAPPERS = ("wrapper", "aggregator")
HELD_OUT = ("product", "wrapper", "aggregator", "evaluator", "classroom", "synthetic")
Truth = dict[int, dict[str, Any]]


def month_store(
    folder: Path, rows: int, seed: int, campaigns: dict[str, Campaign] | None = None, without: tuple[str, ...] = ()
) -> tuple[Store, Truth]:
    """A store of a generated month, and the truth by account; only the reductions are kept."""
    write_month(make_month(rows, seed, campaigns, without=without), folder / "made")
    store = create_store(folder / "store")
    intake(sorted((folder / "made").glob("*.parquet")), store, form="parquet")
    truth = read_truth(folder / "made" / "truth.jsonl")
    for leftover in (*(folder / "made").glob("*.parquet"), *store.path.glob("parts/*/rows-*.parquet")):
        leftover.unlink()
    return store, truth


def read_truth(path: Path) -> Truth:
    """What a generated month's accounts are, by account."""
    with open(path, encoding="utf-8") as stream:
        return {int(record["account"], 16): record for record in map(json.loads, stream)}


def one_month(store: Store, truth: Truth, baseline: Baseline) -> dict[str, Any]:
    """What a watch says of a month, against its truth."""
    watched = watch(store, baseline, MONTH)
    result: dict[str, Any] = {"false": [], "found": {}, "honest_in_campaigns": 0, "clusters": watched.clusters}
    members: dict[str, set[int]] = {}
    for account, record in truth.items():
        if record["campaign"]:
            members.setdefault(record["kind"], set()).add(account)
    caught: dict[str, set[int]] = {name: set() for name in members}
    days: dict[str, list[int]] = {name: [] for name in members}
    wrappers: set[int] = set()
    for suspect in watched.alarms():
        # Inside the cluster of a campaign a wrapper is accused as well.
        wrappers |= {truth[account]["group"] for account in suspect.accounts if truth[account]["kind"] in WRAPPERS}
        kinds = {truth[account]["kind"] for account in suspect.accounts}
        guilty = kinds & set(members)
        if not guilty:
            result["false"].append(
                {"kinds": sorted(kinds), "accounts": len(suspect.accounts), "e": round(suspect.e, 2)}
            )
            continue
        result["honest_in_campaigns"] += sum(not truth[account]["campaign"] for account in suspect.accounts)
        assert suspect.alarm is not None
        for name in guilty:
            caught[name] |= members[name] & set(suspect.accounts)
            days[name].append(suspect.alarm)
    for name, own in members.items():
        first = min(truth[account]["first"] for account in own)
        found = len(caught[name]) >= len(own) / 2
        result["found"][name] = {
            "share": round(len(caught[name]) / len(own), 4),
            "delay_days": round(min(days[name]) + 1 - first, 3) if found else None,
        }
    result["wrappers"] = len(wrappers)
    return result


def make_baseline(folder: Path, rows: int, months: int, without: tuple[str, ...] = ()) -> Baseline:
    """A baseline of benign months."""
    stores = [
        month_store(folder / f"benign{number}", rows, BENIGN_SEED + number, without=without)[0]
        for number in range(months)
    ]
    return calibrate(stores, BOUND)


def scale(folder: Path, baseline: Path, rows: int) -> dict[str, Any]:
    """Read and watch a month of many rows, in this process."""
    block = 1_000_000
    for number in range(max(1, round(rows / block))):
        write_month(make_month(min(rows, block), REPORTED_SEED + 500 + number), folder / f"block{number}")
    logs = sorted(folder.glob("block*/*.parquet"))
    begin, cpu = time.perf_counter(), time.process_time()
    store = create_store(folder / "store")
    told = intake(logs, store, form="parquet")
    middle = time.perf_counter()
    watched = watch(store, read_baseline(baseline), MONTH)
    findings(watched, read_baseline(baseline))
    end = time.perf_counter()
    return {
        "rows": told.rows,
        "accounts": len(watched.data.accounts),
        "seconds_intake": middle - begin,
        "seconds_watch": end - middle,
        "cpu_seconds": time.process_time() - cpu,
        "peak_memory_gb": own_peak_bytes() / 2**30,
    }


def equal_merge(folder: Path, rows: int) -> tuple[bool, float]:
    """Whether shards of JSON lines add up to one pass; and rows per second of that pass."""
    written = write_month(
        make_month(rows, REPORTED_SEED + 400, without=("aggregator", "classroom")), folder / "lines", "jsonl"
    )
    log = folder / "lines" / "requests.jsonl"
    whole = create_store(folder / "whole")
    begin = time.process_time()
    intake([log], whole)
    rate = written / (time.process_time() - begin)
    parts = [create_store(folder / f"part{number}", whole.path / "secret.key") for number in range(5)]
    for number in reversed(range(5)):
        intake([log], parts[number], shard=(number, 5))
    merged = merge(parts[:0:-1], parts[0])
    one = files.read_json(whole.reduced / "reduced.json")
    return bool(merged["tables"] == one["tables"] and merged["rows"] == one["rows"]), rate


def parts_equal(folder: Path, logs: list[Path], whole: Store) -> bool:
    """Whether four shards of the large month, read apart and added up, have the content of its one pass."""
    parts = [create_store(folder / f"shard{number}", whole.path / "secret.key") for number in range(4)]
    for number, part in enumerate(parts):
        intake(logs, part, form="parquet", shard=(number, 4))
    merged = merge(parts[1:], parts[0])
    one = files.read_json(whole.reduced / "reduced.json")
    return bool(merged["tables"] == one["tables"] and merged["rows"] == one["rows"])


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        months, rows: Reported months, and honest rows of each.
        benign: Months of the baseline.
        large: Rows of the large month.
        seed: Of the first reported month.
        held_out: Kinds of honest traffic that a baseline of their own lacks.
        merge_rows: Rows of JSON lines, read whole and in five shards.
    """

    months: int
    rows: int
    benign: int
    large: int
    seed: int
    held_out: tuple[str, ...]
    merge_rows: int


def is_made_of(path: Path, asked: dict[str, Any]) -> bool:
    """Whether what this file is written beside is of these sizes, and by this code."""
    return path.is_file() and bool(files.read_json(path) == asked)


def frozen_baseline(work: Path, sizes: Sizes) -> Baseline:
    """The baseline, made once and kept in ``work``."""
    path, done = work / "baseline.json", work / "baseline.made.json"
    asked = {"rows": sizes.rows, "benign": sizes.benign, "code": report.code_digest()}
    if not is_made_of(done, asked):
        done.unlink(missing_ok=True)
        shutil.rmtree(work / "base", ignore_errors=True)
        files.write_json(path, make_baseline(work / "base", sizes.rows, sizes.benign).record())
        shutil.rmtree(work / "base")
        files.write_json(done, asked)
    return read_baseline(path)


def kept_month(work: Path, sizes: Sizes, number: int) -> tuple[Store, Truth]:
    """A reported month, made once and kept in ``work``: its reductions and its truth."""
    folder = work / f"month{number}"
    done = folder / "made.json"
    asked = {"rows": sizes.rows, "seed": sizes.seed + number, "code": report.code_digest()}
    if not is_made_of(done, asked):
        done.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        month_store(folder, sizes.rows, sizes.seed + number, CAMPAIGNS)
        files.write_json(done, asked)
    return open_store(folder / "store"), read_truth(folder / "made" / "truth.jsonl")


def months(work: Path, sizes: Sizes, kept: report.Kept) -> None:
    """Every reported month against the baseline."""

    def watched(number: int) -> dict[str, Any]:
        return one_month(*kept_month(work, sizes, number), frozen_baseline(work, sizes))

    for number in range(sizes.months):
        kept.cell(f"month {number}", partial(watched, number))


def held_out(work: Path, sizes: Sizes, kept: report.Kept) -> None:
    """Every reported month against baselines that never saw one kind of honest traffic."""

    def watched(kind: str) -> dict[str, Any]:
        folder = work / "held"
        shutil.rmtree(folder, ignore_errors=True)
        # Without a kind there is less traffic, so the months stay as large as the others by their rows.
        baseline = make_baseline(folder, sizes.rows, sizes.benign, (kind,))
        shutil.rmtree(folder)
        return {"months": [one_month(*kept_month(work, sizes, number), baseline) for number in range(sizes.months)]}

    for kind in sizes.held_out:
        kept.cell(f"held out {kind} of {sizes.months} months", partial(watched, kind))


def large(work: Path, sizes: Sizes, kept: report.Kept) -> None:
    """One month of many rows, in a process of its own."""

    def measured() -> dict[str, Any]:
        folder = work / "large"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        files.write_json(folder / "baseline.json", frozen_baseline(work, sizes).record())
        command = [sys.executable, "-m", "benchmarks.guard_campaigns", "--only-scale", str(folder)]
        command += ["--scale", str(sizes.large)]
        told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        told["merge_equal"] = parts_equal(folder, sorted(folder.glob("block*/*.parquet")), open_store(folder / "store"))
        shutil.rmtree(folder)
        return dict(told)

    kept.cell("large", measured)


def merged(work: Path, sizes: Sizes, kept: report.Kept) -> None:
    """Shards of JSON lines with text."""

    def measured() -> dict[str, Any]:
        folder = work / "merge"
        shutil.rmtree(folder, ignore_errors=True)
        equal, rate = equal_merge(folder, sizes.merge_rows)
        shutil.rmtree(folder)
        return {"equal": equal, "rows_per_second": rate}

    kept.cell("merge", measured)


PARTS: dict[str, Callable[[Path, Sizes, report.Kept], None]] = {
    "months": months,
    "large": large,
    "merge": merged,
    "held_out": held_out,
}


def figures_of(sizes: Sizes, cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of all that is done."""
    figures: dict[str, Any] = {
        "rows_per_month": sizes.rows,
        "benign_months": sizes.benign,
        "stated_bound": BOUND,
    }
    results = [cells[f"month {number}"] for number in range(sizes.months) if f"month {number}" in cells]
    if results:
        false = [len(result["false"]) for result in results]
        figures |= {
            "months": len(results),
            "false_alarms_worst": max(false),
            "false_alarms_mean": statistics.mean(false),
            "months_within_bound": sum(count <= BOUND for count in false),
            "wrappers_accused": sum(result["wrappers"] for result in results),
            "honest_accounts_accused": sum(
                result["honest_in_campaigns"] + sum(alarm["accounts"] for alarm in result["false"])
                for result in results
            ),
        }
        for kind in CAMPAIGNS:
            found = [result["found"][kind] for result in results]
            delays = [entry["delay_days"] for entry in found if entry["delay_days"] is not None]
            figures[f"found_{kind}"] = round(len(delays) / len(found), 3)
            figures[f"delay_{kind}"] = round(float(np.median(delays)), 2) if delays else None
    others = {
        kind: cells[name]["months"]
        for kind in sizes.held_out
        if (name := f"held out {kind} of {sizes.months} months") in cells
    }
    if others:
        figures["held_out_false_alarms_worst"] = {
            kind: max(len(found["false"]) for found in all_) for kind, all_ in others.items()
        }
        figures["held_out_wrappers_accused"] = {
            kind: sum(found["wrappers"] for found in all_) for kind, all_ in others.items()
        }
    if big := cells.get("large"):
        figures |= {
            "store_rows": big["rows"],
            "peak_memory_gb": round(big["peak_memory_gb"], 3),
            "rows_per_second": round(big["rows"] / big["cpu_seconds"]),
            "merge_equal_large": big["merge_equal"],
        }
    if lines := cells.get("merge"):
        figures |= {"json_rows_per_second": round(lines["rows_per_second"]), "merge_equal": lines["equal"]}
    return figures


def main() -> None:
    """Run the benchmark, or go on with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small months, few of them")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this; may be repeated")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/guard_campaigns"))
    parser.add_argument("--months", type=int, help="months that are reported (10)")
    parser.add_argument("--benign", type=int, help="benign months of the baseline (12)")
    parser.add_argument("--rows", type=int, help="honest rows a month (1,000,000)")
    parser.add_argument("--scale", type=int, help="rows of the large month (20,000,000)")
    parser.add_argument("--seed", type=int, default=REPORTED_SEED, help="first seed of the reported months")
    parser.add_argument("--held-out", default=None, help="kinds to hold out of a baseline, by commas; empty for none")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-scale", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    quick = options.quick
    if options.only_scale is not None:
        folder = options.only_scale
        sys.stdout.write(json.dumps(scale(folder, folder / "baseline.json", options.scale or 1_000_000)))
        return
    kinds = ("evaluator", "wrapper") if quick else HELD_OUT
    if options.held_out is not None:
        kinds = tuple(kind for kind in options.held_out.split(",") if kind)
    if unknown := sorted(set(kinds) - set(SHARES)):
        parser.error(f"--held-out: no such kind: {', '.join(unknown)}; there are {', '.join(SHARES)}")
    sizes = Sizes(
        months=options.months or (3 if quick else 10),
        rows=options.rows or (100_000 if quick else 1_000_000),
        benign=options.benign or (6 if quick else 12),
        large=options.scale or (200_000 if quick else 20_000_000),
        seed=options.seed,
        held_out=kinds,
        merge_rows=5_000 if quick else 100_000,
    )
    work = options.work / ("quick" if quick else "full")
    work.mkdir(parents=True, exist_ok=True)
    asked = {"rows": sizes.rows, "benign": sizes.benign, "large": sizes.large, "seed": sizes.seed}
    kept = report.Kept(work / "cells.json", asked)
    for name in options.part or PARTS:
        PARTS[name](work, sizes, kept)
    details: dict[str, Any] = {
        "cells": kept.cells,
        "campaigns": {kind: dataclasses.asdict(knobs) for kind, knobs in CAMPAIGNS.items()},
    }
    if (work / "baseline.json").exists():
        baseline = read_baseline(work / "baseline.json")
        limits = [baseline.limit(kind) for kind in range(3)]
        details["limits"] = [round(limit, 3) if np.isfinite(limit) else None for limit in limits]
    report.write(figures_of(sizes, kept.cells), details, options.json)


if __name__ == "__main__":
    main()
