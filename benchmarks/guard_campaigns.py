"""Campaigns in request logs: false alarms of generated months, detection by kind of campaign, wrappers, memory and rates.

    .venv/bin/python -m benchmarks.guard_campaigns [--quick] [--months N] [--rows N] [--scale N] --json FILE    (extra `guard`)

The baseline is made of benign months alone. The months that are reported have other seeds than those, and other seeds than the
months on which the detector was tuned (4000 and above; see docs/benchmarks/guard-campaigns.md). The generator and the detector
were written by the same author, so what is reported is how the detector behaves on these kinds of traffic, not a rate on yours.

- ``false_alarms_worst``: honest clusters reported in the worst month; ``stated_bound`` is their bound, and
  ``months_within_bound`` of ``months`` kept it. A cluster counts as honest where no account of it belongs to a campaign.
- ``wrappers_accused``: honest wrappers and resellers reported, over all months. ``honest_accounts_accused`` counts honest
  accounts inside reported clusters of campaigns too.
- ``found_NAME``, ``delay_NAME``: share of the months in which at least half of a campaign's accounts are in reported clusters,
  and the median of days from its first request to the end of the day of the first report (null: never found).
- ``held_out_false_alarms_worst``: the same bound where a kind of honest traffic is in no benign month, by kind, worst.
- ``store_rows``, ``peak_memory_gb``, ``rows_per_second``: one month of ``--scale`` rows from Parquet to findings, on one
thread,
  in a process of its own. ``json_rows_per_second``: intake of JSON lines with text. ``merge_equal``: whether the reductions of
  five shards, added up, have the content of those of one pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from stillroom.core import files
from stillroom.guard.campaign_baseline import Baseline, calibrate, read_baseline
from stillroom.guard.campaign_watch import findings, watch
from stillroom.guard.intake import intake
from stillroom.guard.log_store import Store, create_store, merge
from stillroom.guard.traffic import CAMPAIGNS, Campaign, make_month, write_month

MONTH = "2026-01"
BENIGN_SEED, REPORTED_SEED = 1_000, 9_000
BOUND = 1.0
WRAPPERS = ("wrapper", "aggregator")
Truth = dict[int, dict[str, Any]]


def month_store(
    folder: Path, rows: int, seed: int, campaigns: dict[str, Campaign] | None = None, without: tuple[str, ...] = ()
) -> tuple[Store, Truth]:
    """A store of a generated month, and the truth by account; only the reductions are kept."""
    write_month(make_month(rows, seed, campaigns, without=without), folder / "made")
    store = create_store(folder / "store")
    intake(sorted((folder / "made").glob("*.parquet")), store, form="parquet")
    truth = {}
    with open(folder / "made" / "truth.jsonl", encoding="utf-8") as stream:
        for line in stream:
            record = json.loads(line)
            truth[int(record["account"], 16)] = record
    for leftover in (*(folder / "made").glob("*.parquet"), *store.path.glob("parts/*/rows-*.parquet")):
        leftover.unlink()
    return store, truth


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
    for suspect in watched.alarms():
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
    result["wrappers"] = sum(bool(set(alarm["kinds"]) & set(WRAPPERS)) for alarm in result["false"])
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
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
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


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small months, few of them")
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
    rows = options.rows or (100_000 if quick else 1_000_000)
    if options.only_scale is not None:
        folder = options.only_scale
        sys.stdout.write(json.dumps(scale(folder, folder / "baseline.json", options.scale or 1_000_000)))
        return
    months, benign = options.months or (3 if quick else 10), options.benign or (6 if quick else 12)
    large = options.scale or (200_000 if quick else 20_000_000)
    held_out = (
        ["evaluator", "wrapper"]
        if quick
        else ["product", "wrapper", "aggregator", "evaluator", "classroom", "synthetic"]
    )
    if options.held_out is not None:
        held_out = [kind for kind in options.held_out.split(",") if kind]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        baseline = make_baseline(work / "base", rows, benign)
        stores, results = [], []
        for number in range(months):
            store, truth = month_store(work / f"month{number}", rows, options.seed + number, CAMPAIGNS)
            stores.append((store, truth))
            results.append(one_month(store, truth, baseline))
            sys.stderr.write(f"month {number + 1}: {json.dumps(results[-1])}\n")
        others = {}
        for kind in held_out:
            shutil.rmtree(work / "held", ignore_errors=True)
            # Without a kind there is less traffic, so the months stay as large as the others by their rows.
            without = make_baseline(work / "held", rows, benign, (kind,))
            others[kind] = [one_month(store, truth, without) for store, truth in stores]
            sys.stderr.write(f"held out {kind}: {[len(found['false']) for found in others[kind]]}\n")
        shutil.rmtree(work / "base", ignore_errors=True)
        shutil.rmtree(work / "held", ignore_errors=True)
        (work / "large").mkdir()
        files.write_json(work / "large" / "baseline.json", baseline.record())
        command = [
            sys.executable,
            "-m",
            "benchmarks.guard_campaigns",
            "--only-scale",
            str(work / "large"),
            "--scale",
            str(large),
        ]
        big = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        equal, json_rate = equal_merge(work / "merge", 5_000 if quick else 100_000)
    false = [len(result["false"]) for result in results]
    figures: dict[str, Any] = {
        "months": months,
        "rows_per_month": rows,
        "benign_months": benign,
        "stated_bound": BOUND,
        "false_alarms_worst": max(false),
        "false_alarms_mean": statistics.mean(false),
        "months_within_bound": sum(count <= BOUND for count in false),
        "wrappers_accused": sum(result["wrappers"] for result in results),
        "honest_accounts_accused": sum(
            result["honest_in_campaigns"] + sum(alarm["accounts"] for alarm in result["false"]) for result in results
        ),
        "held_out_false_alarms_worst": {
            kind: max(len(found["false"]) for found in all_) for kind, all_ in others.items()
        },
        "held_out_wrappers_accused": {kind: sum(found["wrappers"] for found in all_) for kind, all_ in others.items()},
        "store_rows": big["rows"],
        "peak_memory_gb": round(big["peak_memory_gb"], 3),
        "rows_per_second": round(big["rows"] / big["cpu_seconds"]),
        "json_rows_per_second": round(json_rate),
        "merge_equal": equal,
    }
    for kind in CAMPAIGNS:
        found = [result["found"][kind] for result in results]
        delays = [entry["delay_days"] for entry in found if entry["delay_days"] is not None]
        figures[f"found_{kind}"] = round(len(delays) / len(found), 3)
        figures[f"delay_{kind}"] = round(float(np.median(delays)), 2) if delays else None
    details = {
        "months": results,
        "held_out": others,
        "large": big,
        "campaigns": {kind: dataclasses.asdict(knobs) for kind, knobs in CAMPAIGNS.items()},
        "limits": [round(baseline.limit(kind), 3) if np.isfinite(baseline.limit(kind)) else None for kind in range(3)],
    }
    report.write(figures, details, options.json)


if __name__ == "__main__":
    main()
