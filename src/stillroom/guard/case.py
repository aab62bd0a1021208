"""A page about one cluster, from which a person can decide: what happened, when, what is shared, who would be hit.

Self-contained HTML without scripts. Everything that comes from logs is escaped, and a policy in the page forbids whatever
was missed.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

import numpy as np

from stillroom.core.errors import UsageError
from stillroom.guard.campaign import FEATURES, STRATA
from stillroom.guard.campaign_baseline import Baseline
from stillroom.guard.campaign_watch import CANNOT, NULL, Suspect, Watched, notes_of
from stillroom.guard.intake_text import printable
from stillroom.guard.log_store import KINDS, Store, database, load

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
SHOWN = 200
WORDS = {
    "org": "organisation",
    "payment": "payment",
    "device": "device",
    "ip24": "network",
    "asn": "ASN",
    "country": "country",
    "ua": "user agent",
    "end_user": "end user",
}


@dataclass(frozen=True)
class Evidence:
    """What the store says about a cluster.

    Attributes:
        names: Accounts as they may be shown.
        daily: Requests by day: all, and those of the stream.
        shared: By kind: values that two of its accounts or more have, as ``(digest, its accounts, all accounts)``.
        templates: The cluster's templates: ``(text or digest, requests, accounts)``.
        rest: Requests outside the stream that made the score.
        end_users: Different end users behind its accounts.
    """

    names: list[str]
    daily: list[tuple[str, int, int]]
    shared: dict[str, list[tuple[str, int, int]]]
    templates: list[tuple[str, int, int]]
    rest: int
    end_users: int


def find_suspect(watched: Watched, name: str) -> Suspect:
    """A cluster by name.

    Raises:
        UsageError: The month has no scored cluster of this name.
    """
    for suspect in watched.suspects:
        if suspect.name == name:
            return suspect
    raise UsageError(
        f"{watched.month} has no scored cluster {printable(name, 40)}.",
        "`stillroom guard watch` lists them; --all shows every one.",
    )


def gather(store: Store, watched: Watched, suspect: Suspect) -> Evidence:
    """Collect what the store says about a cluster."""
    data = watched.data
    mine = np.isin(data.accounts, np.array(suspect.accounts, np.uint64))
    of_pair = mine[data.pair_account]
    # Template 0 stands for everything that the cluster sends.
    stream = of_pair & (data.pair_template == suspect.template) if suspect.template else of_pair
    rows = data.rows
    in_all, in_stream = of_pair[rows["pair"]], stream[rows["pair"]]
    daily_all = np.bincount(rows["day"][in_all], rows["requests"][in_all], data.days).astype(int)
    daily_stream = np.bincount(rows["day"][in_stream], rows["requests"][in_stream], data.days).astype(int)
    with database(scratch=store.path / "scratch") as connection:
        connection.register("mine", {"account": np.array(suspect.accounts, np.uint64)})
        table = load(store, connection, "SELECT kind, value, name FROM {names} WHERE kind IN ('account', 'skeleton')")
        users = load(
            store,
            connection,
            "SELECT count(DISTINCT value)::BIGINT AS n FROM {values} JOIN mine USING (account) WHERE kind = 7",
        )
        values = load(
            store, connection,
            "SELECT kind::INTEGER AS kind, value, count(*) FILTER (account IN (SELECT account FROM mine))::BIGINT AS own,"
            " count(*)::BIGINT AS everyone FROM {values} WHERE kind <> 7 GROUP BY ALL"
            " HAVING own >= 2 ORDER BY kind, own DESC, value",
        )  # fmt: skip
    known = {
        (kind, int(value)): name for kind, value, name in zip(table["kind"], table["value"], table["name"], strict=True)
    }
    names = [known.get(("account", account), f"{account:016x}") for account in suspect.accounts]
    shared: dict[str, list[tuple[str, int, int]]] = {}
    for kind, value, own, everyone in zip(
        values["kind"], values["value"], values["own"], values["everyone"], strict=True
    ):
        shared.setdefault(KINDS[int(kind)], []).append((f"{int(value):016x}"[:8], int(own), int(everyone)))
    volume = np.bincount(
        data.pair_template[rows["pair"][in_all]], rows["requests"][in_all], len(data.templates)
    ).astype(int)
    accounts = np.bincount(data.pair_template[of_pair], minlength=len(data.templates))
    templates = []
    for index in np.argsort(-volume, kind="stable")[:20].tolist():
        if volume[index]:
            digest = int(data.templates[index])
            words = (
                "rare or unique beginnings"
                if index == 0
                else known.get(("skeleton", digest), f"template {digest:016x}")
            )
            mark = " (the stream that made the score)" if index and index == suspect.template else ""
            templates.append((words + mark, int(volume[index]), int(accounts[index])))
    daily = [(watched.date(day), int(daily_all[day]), int(daily_stream[day])) for day in range(data.days)]
    return Evidence(names, daily, shared, templates, int(daily_all.sum() - daily_stream.sum()), int(users["n"][0]))


def page(watched: Watched, baseline: Baseline, suspect: Suspect, evidence: Evidence) -> str:
    """The page."""
    alarm = f"first reported {watched.date(suspect.alarm)}" if suspect.alarm is not None else "not reported"
    parts = [
        f"<h1>Cluster {_text(suspect.name)}</h1>",
        f"<p>{len(suspect.accounts):,} accounts that act as one, in {_text(watched.month)}; {alarm}. Suggested:"
        f" <b>{_text(suspect.level)}</b>. Nothing was blocked, and this page alone is no reason to block anybody.</p>",
        "<h2>How unusual</h2>",
        f"<p>e-value {suspect.e:.3g}; reported from {suspect.needed:.3g} on, which allows on average at most"
        f" {baseline.false_alarms:g} honest clusters a month. Rank {min(suspect.rank, suspect.of):,} of {suspect.of:,} among"
        f" benign clusters with {_text(STRATA[suspect.stratum])} and this one. Null hypothesis: {_text(NULL)}.</p>",
        _features(baseline, suspect),
        "<h2>Requests by day</h2>",
        _timeline(evidence.daily),
        "<h2>Templates</h2>",
        "" if suspect.template else "<p>The score is of all its requests together, not of one template.</p>",
        _table(("template", "requests", "accounts"), evidence.templates),
        "<h2>What the accounts share</h2>",
        *(_shared(kind, rows) for kind, rows in evidence.shared.items()),
        "<p>Values are shown as the first digits of their digests under this store's secret.</p>"
        if evidence.shared
        else "<p>Nothing.</p>",
        "<h2>Who would be hit</h2>",
        f"<p>{len(suspect.accounts):,} accounts; {evidence.rest:,} of their requests are outside the stream that made the score"
        f" ({_share(evidence)}); {evidence.end_users:,} end users are named behind them. Look at the requests outside"
        " the stream first: a wrapper's honest users are there.</p>",
        f"<p class=names>{', '.join(map(_text, evidence.names[:SHOWN]))}"
        + (f" and {len(evidence.names) - SHOWN:,} more" if len(evidence.names) > SHOWN else "")
        + "</p>",
        "<h2>What cannot be concluded</h2>",
        "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in CANNOT) + "</ul>",
        "<h2>Notes</h2>",
        "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in notes_of(watched, baseline)) + "</ul>",
    ]
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
        "table{border-collapse:collapse}td,th{padding:.15em .8em .15em 0;text-align:left;vertical-align:top;"
        "overflow-wrap:anywhere}"
        # Numbers and their headings are never parted, on the narrowest screen either.
        "td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:normal}td.n{white-space:nowrap}"
        "@media(max-width:36em){body{font-size:14px;margin:1em auto}td,th{padding-right:.5em}td:last-child,th:last-child"
        "{padding-right:0}}"
        ".names{overflow-wrap:anywhere;color:#555}"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Cluster {_text(suspect.name)}</title><style>{style}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(printable(text, 2000))


def _share(evidence: Evidence) -> str:
    total = sum(count for _, count, _ in evidence.daily)
    return f"{evidence.rest / total:.0%}" if total else "none"


def _table(head: tuple[str, ...], rows: list[tuple[str, int, int]]) -> str:
    first, *others = head
    top = f"<tr><th>{first}</th>" + "".join(f"<th class=n>{name}</th>" for name in others) + "</tr>"
    body = "".join(
        f"<tr><td>{_text(name)}</td><td class=n>{one:,}</td><td class=n>{two:,}</td></tr>" for name, one, two in rows
    )
    return f"<table>{top}{body}</table>"


def _features(baseline: Baseline, suspect: Suspect) -> str:
    grid = baseline.scorer.grids[suspect.stratum]
    rows = "".join(
        f"<tr><td>{_text(name)}</td><td class=n>{value:.2f}</td><td class=n>{middle:.2f}</td><td class=n>{high:.2f}</td>"
        f"<td class=n>{round(part, 1) + 0.0:.1f}</td></tr>"  # + 0.0: a tiny negative number is no -0.0
        for name, value, part, middle, high in zip(
            FEATURES, suspect.values, suspect.parts, grid[:, 50], grid[:, -1], strict=True
        )
    )
    return (
        "<table><tr><th>of its highest stream (counts as log10, shares from 0 to 1)</th><th class=n>here</th>"
        "<th class=n>benign median"
        f"</th><th class=n>benign 95 %</th><th class=n>adds</th></tr>{rows}</table>"
    )


def _shared(kind: str, rows: list[tuple[str, int, int]]) -> str:
    return _table((WORDS[kind], "its accounts", "all accounts"), rows[:15])


def _timeline(daily: list[tuple[str, int, int]]) -> str:
    most = max((count for _, count, _ in daily), default=0) or 1
    width, height = 22, 120
    bars = []
    for place, (date, count, stream) in enumerate(daily):
        for amount, colour in ((count, "#c9d3df"), (stream, "#b4552d")):
            tall = amount / most * height
            bars.append(
                f'<rect x="{place * width}" y="{height - tall:.1f}" width="{width - 3}" height="{tall:.1f}" fill="{colour}">'
                f"<title>{_text(date)}: {count:,} requests, {stream:,} in the stream</title></rect>"
            )
    total = width * max(1, len(daily))
    return (
        f'<svg viewBox="0 0 {total} {height}" width="100%" role="img" aria-label="Requests by day">{"".join(bars)}</svg>'
        f"<p>From {_text(daily[0][0])} to {_text(daily[-1][0])}, a bar a day. Grey: all requests of the cluster; red: those of"
        f" the stream that made the score. Highest day: {most:,}.</p>"
    )
