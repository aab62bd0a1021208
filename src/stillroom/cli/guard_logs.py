"""`stillroom guard intake|merge|calibrate|watch|case|gen-traffic`: campaigns in request logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

Logs = Annotated[
    list[Path], typer.Argument(metavar="LOGS...", help="Log files: JSON lines, access logs, .gz of these, Parquet.")
]
StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="A store that `guard intake` made.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="The store; made if it is not there.")]
Memory = Annotated[str, typer.Option(help="Memory that DuckDB may take, such as 2GB.")]
Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads of DuckDB.")]
Permitted = Annotated[
    Path | None, typer.Option(help="A file of accounts, one per line, that may do what a campaign does.")
]
BaselinePath = Annotated[Path, typer.Option("--baseline", help="What `guard calibrate` wrote.")]
Month = Annotated[str | None, typer.Option(help="The month, such as 2026-01; the last one that has begun without it.")]
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]


def add(group: typer.Typer) -> None:
    """Add the commands to the group `guard`."""
    for command in (intake, merge, calibrate, watch, case):
        group.command()(command)
    group.command("gen-traffic")(gen_traffic)


def intake(
    logs: Logs,
    output: Output,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="auto, openai, litellm, otel, stillroom, nginx, vllm or parquet (canonical rows)."
        ),
    ] = "auto",
    account: Annotated[str | None, typer.Option(help="The account of rows that name none.")] = None,
    shards: Annotated[
        str | None, typer.Option(metavar="I/N", help="Read share I of N only (1/8 to 8/8); merge afterwards.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="secret.key of the store that this one will be merged with.")
    ] = None,
    keep_skeletons: Annotated[
        bool, typer.Option(help="Keep the masked first words of prompts, so that a case shows them in clear.")
    ] = False,
    memory: Memory = "2GB",
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Read request logs into a store; texts, addresses and keys are reduced to keyed digests."""
    from stillroom.guard.intake import intake as read
    from stillroom.guard.log_store import create_store

    report = read(
        logs, create_store(output, key_file), form=form, account=account, shard=_shard(shards), keep_skeletons=keep_skeletons,
        memory=_memory(memory), threads=threads,
    )  # fmt: skip
    if as_json:
        waiting = [{"log": str(path), "bytes": size} for path, size in report.waiting]
        shown = report.record() | {"already": report.already, "known": report.known, "waiting": waiting}
        typer.echo(json.dumps(shown, indent=2))
        return
    if report.known:
        typer.echo("These logs are in the store already; nothing was counted twice.")
        _say_waiting(report.waiting)
        return
    typer.echo(
        f"{report.rows:,} requests ({', '.join(f'{form} {count:,}' for form, count in sorted(report.formats.items()))})"
    )
    if report.span:
        first, last = report.span
        typer.echo(f"  from {first} to {last} (UTC)")
        if last > (tomorrow := _tomorrow()):
            typer.echo(f"  some are dated after {tomorrow}: a clock was wrong, or the time is not the request's")
    if report.already:
        typer.echo(f"  in the store already: {report.already:,} lines, which were not counted again")
    _say_waiting(report.waiting)
    for title, counts in (("skipped", report.skipped), ("taken, with a repair", report.repaired)):
        for reason, count in counts.most_common():
            typer.echo(f"  {title}: {count:,} lines, {reason}")
    for words, share in report.missing.items():
        typer.echo(f"  missing: {words}{'' if share == 1 else f', in {share:.1%} of the requests'}")
    if report.missing.get("text") == 1:
        typer.echo(
            "  without text, a request's parameters stand for its template: much less can be seen (docs/guard-logs.md)"
        )
    if shards is not None:
        typer.echo(f"When all shares are read: stillroom guard merge {output}")


def _say_waiting(waiting: list[tuple[Path, int]]) -> None:
    """Logs whose last line may be half a line."""
    for path, size in waiting:
        typer.echo(
            f"  not read yet: the last line of {path}, which has no end ({size:,} bytes); it is read once it has one"
        )
    if waiting:
        typer.echo("  where such a log is finished, add the end of the line (echo >> LOG), and read it again")


def merge(
    stores: Annotated[list[Path], typer.Argument(metavar="STORES...", help="Stores with one secret.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; the first one without it.")] = None,
    memory: Memory = "2GB",
    threads: Threads = 1,
    as_json: Json = False,
) -> None:
    """Add up the parts of stores; the result equals one pass over all their logs."""
    from stillroom.guard.log_store import create_store, open_store
    from stillroom.guard.log_store import merge as add_up

    opened = [open_store(path) for path in stores]
    into = create_store(output, stores[0] / "secret.key") if output is not None else opened[0]
    record = add_up(opened, into, _memory(memory), threads)
    if as_json:
        typer.echo(json.dumps(record, indent=2))
    else:
        typer.echo(f"{record['rows']:,} requests of {len(record['parts'])} parts in {into.path}")


def calibrate(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORES...", help="Stores of months without a known campaign.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The baseline (JSON).")],
    false_alarms: Annotated[
        float, typer.Option(help="Honest clusters that may be reported a month, on average.")
    ] = 1.0,
    benign: Annotated[
        str | None,
        typer.Option("--benign", metavar="FROM..TO", help="Months, such as 2026-01..2026-03; all without it."),
    ] = None,
    permitted: Permitted = None,
    as_json: Json = False,
) -> None:
    """Learn from benign months what honest clusters look like, and set thresholds for a bound of false alarms."""
    import numpy as np

    from stillroom.core import files
    from stillroom.core.outputs import require_output
    from stillroom.guard.campaign import STRATA
    from stillroom.guard.campaign_baseline import calibrate as learn
    from stillroom.guard.campaign_watch import read_permitted
    from stillroom.guard.log_store import open_store, parts_of

    require_output(output, [permitted, *(part for store in stores for part in parts_of(store))])
    opened = [open_store(path) for path in stores]
    allowed = frozenset[int]().union(*(read_permitted(permitted, store) for store in opened))
    made = learn(opened, false_alarms, _months(benign), allowed)
    files.write_json(output, made.record())
    limits = {name: made.limit(kind) for kind, name in enumerate(STRATA)}
    if as_json:
        shown = {name: round(limit, 4) if np.isfinite(limit) else None for name, limit in limits.items()}
        typer.echo(
            json.dumps({"months": made.months, "false_alarms_per_month": false_alarms, "score_limits": shown}, indent=2)
        )
        return
    typer.echo(
        f"{made.months} benign months; at most {false_alarms:g} honest clusters a month are reported, on average."
    )
    for kind, (name, limit) in enumerate(limits.items()):
        rate = f"{made.per_month[kind]:,.0f} scored a month"
        if np.isfinite(limit):
            typer.echo(f"  {name}: {rate}; reported from score {limit:.2f} on")
        else:
            typer.echo(f"  {name}: {rate}; too few benign months for this bound, so none can be reported")


def signers_of(keys: Path | None, passphrase_fd: int | None) -> list[CryptoSigner]:
    """The keys of a ring's folder, opened; none without one. Errors as in :func:`stillroom.guard.findings.open_signers`."""
    from stillroom.guard.findings import open_signers
    from stillroom.packages.keys import Ring
    from stillroom.packages.secret import passphrase

    return open_signers(Ring.open(keys), passphrase(passphrase_fd)) if keys is not None else []


def watch(
    store: StorePath,
    baseline: BaselinePath,
    month: Month = None,
    permitted: Permitted = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Findings; STORE/findings-MONTH.json without it.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="Sign the findings with the release keys of this folder.")
    ] = None,
    passphrase_fd: Annotated[
        int | None, typer.Option("--passphrase-fd", help="Read the passphrase from this descriptor.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every scored cluster.")] = False,
    as_json: Json = False,
) -> None:
    """List clusters of accounts that a person should look at. Run it daily: looking often costs nothing."""
    from stillroom.core import files
    from stillroom.core.outputs import require_apart
    from stillroom.guard.campaign import last_month
    from stillroom.guard.campaign_baseline import read_baseline
    from stillroom.guard.campaign_watch import findings, notes_of, read_permitted
    from stillroom.guard.campaign_watch import watch as compare
    from stillroom.guard.findings import require_writable, write_findings
    from stillroom.guard.log_store import open_store, parts_of

    opened, frozen = open_store(store), read_baseline(baseline)
    looked_at = month or last_month(opened)
    target = output or store / f"findings-{looked_at}.json"
    # One line a finding, for programs that follow them. Only `.json` is replaced: the findings' own name is never this one.
    rows = target.with_name(target.name.removesuffix(".json") + ".jsonl")
    inputs = [baseline, permitted, keys, *parts_of(store)]
    require_writable(target, inputs)
    require_apart(rows, inputs)
    signers = signers_of(keys, passphrase_fd)
    watched = compare(opened, frozen, looked_at, read_permitted(permitted, opened))
    made = findings(watched, frozen)
    listed = [found for found in watched.suspects if every or found.level != "none"]
    # Shown first: what took long is not lost where it cannot be written.
    if as_json:
        shown = {"month": watched.month, "findings": str(target), "clusters": [vars(found) for found in listed]}
        typer.echo(json.dumps(shown, indent=2))
    else:
        typer.echo(f"{watched.month}, up to {watched.date(watched.data.days - 1)}:")
        for found in listed:
            since = f", since {watched.date(found.alarm)}" if found.alarm is not None else ""
            evidence = f"e {found.e:.3g} of {found.needed:.3g}{since}"
            typer.echo(f"{found.level}: {found.name}, {len(found.accounts):,} accounts, {evidence}")
        if not watched.alarms():
            typer.echo("Nothing to ask a person about. That does not show that there is no campaign.")
        for note in notes_of(watched, frozen):
            typer.echo(f"  {note}")
    subjects = {"store": opened.digest(), "baseline": files.digest_file(baseline)}
    if permitted is not None:
        # Who is left out decides what is found.
        subjects["permitted"] = files.digest_file(permitted)
    write_findings(target, made, subjects, signers)
    files.write_text(rows, "".join(f"{json.dumps(found.model_dump(mode='json'))}\n" for found in made.findings))
    if as_json:
        return
    typer.echo(f"Findings: {target}{'' if signers else ' (unsigned; --keys signs)'}; one line each: {rows}")
    if watched.alarms():
        typer.echo(
            f"Look at one: stillroom guard case {watched.alarms()[0].name} --store {store} --baseline {baseline}"
        )


def case(
    cluster: Annotated[str, typer.Argument(metavar="CLUSTER", help="A cluster's name, as `guard watch` lists it.")],
    store: Annotated[Path, typer.Option(help="The store.")],
    baseline: BaselinePath,
    month: Month = None,
    permitted: Permitted = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; CLUSTER.html without it.")] = None,
) -> None:
    """Write a page about a cluster: timeline, templates, what is shared, who would be hit, what cannot be concluded."""
    from stillroom.core import files
    from stillroom.core.outputs import require_output
    from stillroom.guard import case as pages
    from stillroom.guard.campaign import last_month
    from stillroom.guard.campaign_baseline import read_baseline
    from stillroom.guard.campaign_watch import read_permitted
    from stillroom.guard.campaign_watch import watch as compare
    from stillroom.guard.log_store import open_store, parts_of

    inputs = [baseline, permitted, *parts_of(store)]
    if output is not None:
        require_output(output, inputs)
    opened, frozen = open_store(store), read_baseline(baseline)
    watched = compare(opened, frozen, month or last_month(opened), read_permitted(permitted, opened))
    suspect = pages.find_suspect(watched, cluster)
    target = output or Path(f"{suspect.name}.html")
    require_output(target, inputs)
    files.write_text(target, pages.page(watched, frozen, suspect, pages.gather(opened, watched, suspect)))
    typer.echo(f"{target}: {len(suspect.accounts):,} accounts, e {suspect.e:.3g} of {suspect.needed:.3g}")


def gen_traffic(
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder: requests, and truth.jsonl.")],
    rows: Annotated[int, typer.Option(min=100, help="Requests of honest customers, roughly.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
    campaigns: Annotated[
        list[str] | None,
        typer.Option("--campaign", help="clumsy, plain, mixed, migrating, paraphrased, residential, careful, or all."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="A kind of honest customers to leave out; may be repeated.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="parquet (canonical rows) or jsonl (with text).")] = "parquet",
) -> None:
    """Generate a month of request logs with or without campaigns; the truth is written apart."""
    from stillroom.core.errors import UsageError
    from stillroom.guard.intake_text import printable
    from stillroom.guard.traffic import CAMPAIGNS, SHARES, make_month, write_month

    chosen = list(CAMPAIGNS) if campaigns == ["all"] else campaigns or []
    for name in chosen:
        if name not in CAMPAIGNS:
            raise UsageError(f"--campaign {printable(name)}: unknown.", f"One of: all, {', '.join(CAMPAIGNS)}.")
    for name in without or ():
        if name not in SHARES:
            raise UsageError(f"--without {printable(name)}: unknown.", f"One of: {', '.join(SHARES)}.")
    if set(without or ()) == set(SHARES):
        raise UsageError("--without leaves no honest customers.", "Keep a kind.")
    made = make_month(rows, seed, {name: CAMPAIGNS[name] for name in chosen}, without=tuple(without or ()))
    written = write_month(made, output, form)
    typer.echo(f"{written:,} requests in {output}; what they are: {output / 'truth.jsonl'}")


def _tomorrow() -> str:
    import datetime

    return (datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)).isoformat()


def _shard(text: str | None) -> tuple[int, int]:
    from stillroom.core.errors import UsageError

    if text is None:
        return 0, 1
    first, slash, last = text.partition("/")
    if not slash or not first.isdecimal() or not last.isdecimal() or not 1 <= int(first) <= int(last) <= 100_000:
        raise UsageError(f"--shards {text[:40]!r}: not I/N.", "Write it as 1/8, 2/8, … 8/8.")
    return int(first) - 1, int(last)


def _memory(text: str) -> str:
    import re

    from stillroom.core.errors import UsageError

    if not re.fullmatch(r"\d{1,6}(\.\d{1,3})? ?[KMGT]i?B", text):
        raise UsageError(f"--memory {text[:40]!r}: not an amount of memory.", "Write it as 2GB.")
    return text


def _months(text: str | None) -> list[str] | None:
    import re

    from stillroom.core.errors import UsageError

    if text is None:
        return None
    first, _, last = text.partition("..")
    last = last or first
    for month in (first, last):
        if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month):
            raise UsageError(f"--benign {text[:40]!r}: not months.", "Write them as 2026-01..2026-03.")
    count = [int(month[:4]) * 12 + int(month[5:]) - 1 for month in (first, last)]
    if count[1] < count[0]:
        raise UsageError(f"--benign {text}: ends before it begins.", "Write them as 2026-01..2026-03.")
    return [f"{number // 12:04d}-{number % 12 + 1:02d}" for number in range(count[0], count[1] + 1)]
