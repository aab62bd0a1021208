"""What clusters of accounts do, day by day: the features of their streams, from a store's reductions.

A *stream* is what one cluster sends from one template (or, in logs without text, with one set of parameters). Cover traffic and
real end users are in other streams of the same cluster, so that they cannot water a campaign down. Clusters of three
accounts or more have one further stream, of everything that they send: paraphrased templates are not seen in any other.

All features grow with suspicion, and none says "distillation" alone: a product, an evaluation or a course is extreme in some
of them.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillroom.core.errors import UsageError
from stillroom.guard.entities import Clusters, Links, find_clusters
from stillroom.guard.log_store import DAY_US, Store, Table, database, load

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
SEEN = 5
"""Requests of a model in a day from which on it was there."""
LEAST = 30
"""Requests from which on a stream is scored."""
SUMS = ("requests", "tokens_out", "cot", "asked", "single", "q0", "q1", "q2", "q3", "new_model", "after_release")
FEATURES = (
    "requests",
    "output tokens",
    "texts that never repeat",
    "accounts on one template",
    "asks for reasoning",
    "asks for logprobs or several answers",
    "spread over the day",
    "one-turn requests",
    "evenness over accounts",
    "synchronous starts",
    "moves at a release",
    "tokens per answer",
)
STRATA = ("one account", "2 to 9 accounts", "10 or more accounts")
"""Clusters are compared with benign clusters of their own stratum."""


@dataclass(frozen=True)
class Data:
    """One month of a store, as arrays by index of account, template and pair of both.

    Attributes:
        accounts: Digests, ``[accounts]``.
        templates: Digests; index 0 stands for all that are too rare to be a stream.
        pair_account, pair_template: ``[pairs]``.
        rows: Requests by pair and day: ``pair``, ``day`` (0 is the month's first) and the columns of :data:`SUMS`; sorted by
        day. fills: A sample of texts: ``pair``, ``day``, ``fill``, ``requests``.
        links: What accounts share.
        first_us: When each account was first seen in the store.
        content: Most frequent template of each account.
        begin_us, days: The month.
        month: Its name, such as 2026-01.
        released: Days (of the month, from 0) on which models were first seen, by digest.
    """

    accounts: npt.NDArray[np.uint64]
    templates: npt.NDArray[np.uint64]
    pair_account: Integers
    pair_template: Integers
    rows: Table
    fills: Table
    links: Links
    first_us: Integers
    content: Integers
    begin_us: int
    days: int
    month: str
    released: dict[str, int]


@dataclass(frozen=True)
class Day:
    """All streams at the end of one day; parallel arrays by stream, the best one first per cluster is not implied.

    Attributes:
        day: From 0.
        root: Account that names the cluster: the one that was seen first.
        size: Accounts of the cluster.
        template: Index of the template; 0 stands for all requests of the cluster.
        values: Features, ``[streams, features]``.
        clusters: The partition.
    """

    day: int
    root: Integers
    size: Integers
    template: Integers
    values: Floats
    clusters: Clusters


def stratum(size: Integers) -> Integers:
    """The index in :data:`STRATA` of clusters with so many accounts."""
    return np.digitize(size, [2, 10])


def months_of(store: Store) -> list[str]:
    """The months that a store has requests of."""
    with database(scratch=store.path / "scratch") as connection:
        days = load(store, connection, "SELECT DISTINCT day FROM {streams} ORDER BY day")["day"]
    return sorted({_date(int(day)).strftime("%Y-%m") for day in days})


def last_month(store: Store) -> str:
    """The last month that a store has requests of; one that has not begun (a wrong clock) only where there is no other.

    Raises:
        UsageError: The store has no requests.
    """
    found = months_of(store)
    if not found:
        raise UsageError(f"{store.path} has no requests.", "Read logs first: stillroom guard intake LOGS... -o STORE.")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m")
    return ([month for month in found if month <= now] or found)[-1]


def _date(day: int) -> datetime.date:
    return datetime.date(1970, 1, 1) + datetime.timedelta(days=day)


def load_month(store: Store, month: str, memory: str = "1GB") -> Data:
    """Read a month from a store.

    Raises:
        UsageError: The store has nothing of this month.
    """
    try:
        begin = datetime.date.fromisoformat(f"{month}-01")
    except ValueError:
        raise UsageError(f"{month!r} is not a month.", "Write it as 2026-01.") from None
    end = (begin + datetime.timedelta(days=32)).replace(day=1)
    low, high = (begin - datetime.date(1970, 1, 1)).days, (end - datetime.date(1970, 1, 1)).days
    with database(memory, scratch=store.path / "scratch") as connection:
        connection.execute("SET preserve_insertion_order = false")
        chosen = f"day >= {low} AND day < {high}"
        connection.execute(
            "CREATE TEMP TABLE kept AS SELECT skeleton, row_number() OVER (ORDER BY skeleton)::INTEGER AS template"
            f" FROM read_parquet('{_path(store, 'streams')}') WHERE {chosen}"
            f" GROUP BY skeleton HAVING sum(requests) >= {LEAST}"
        )
        released = load(
            store,
            connection,
            # A request or two with a wrong clock are no release, nor the store's first day.
            f"SELECT model, min(day) FILTER (n >= {SEEN})::BIGINT AS day FROM (SELECT model, day, sum(requests) AS n FROM"
            " {streams} GROUP BY model, day) GROUP BY model HAVING sum(n) >= 100 AND max(n) >= " + str(SEEN),
        )
        # A model whose first request is in the store's first days was there before the logs.
        first_day = int(released["day"].min()) if len(released["day"]) else low
        new = {
            int(model): int(day)
            for model, day in zip(released["model"], released["day"], strict=True)
            if day > first_day + 2
        }
        days_after = " OR ".join(f"(day BETWEEN {day} AND {day + 2})" for day in set(new.values())) or "false"
        on_new = (
            " OR ".join(f"(model = {model} AND day BETWEEN {day} AND {day + 2})" for model, day in new.items())
            or "false"
        )
        accounts = load(
            store, connection,
            "SELECT account, first_us FROM {accounts} WHERE account IN"
            f" (SELECT account FROM {{streams}} WHERE {chosen}) ORDER BY account",
        )  # fmt: skip
        if not len(accounts["account"]):
            raise UsageError(
                f"{store.path} has no requests of {month}.", f"It has: {', '.join(months_of(store)) or 'none'}."
            )
        connection.register("who", {"account": accounts["account"], "number": np.arange(len(accounts["account"]))})
        rows = load(
            store, connection,
            "SELECT number::INTEGER AS account, coalesce(template, 0)::INTEGER AS template, (day - "
            f"{low})::INTEGER AS day, sum(requests)::INTEGER AS requests, sum(tokens_out)::BIGINT AS tokens_out,"
            " sum(cot)::INTEGER AS cot, sum(greatest(logprobs, multiple))::INTEGER AS asked, sum(single)::INTEGER AS single,"
            " sum(q0)::INTEGER AS q0, sum(q1)::INTEGER AS q1, sum(q2)::INTEGER AS q2, sum(q3)::INTEGER AS q3,"
            f" coalesce(sum(requests) FILTER ({on_new}), 0)::INTEGER AS new_model,"
            f" coalesce(sum(requests) FILTER ({days_after}), 0)::INTEGER AS after_release"
            " FROM {streams} JOIN who USING (account) LEFT JOIN kept USING (skeleton)"
            f" WHERE {chosen} GROUP BY 1, 2, 3 ORDER BY 3, 1, 2",
        )  # fmt: skip
        fills = load(
            store, connection,
            f"SELECT number::INTEGER AS account, template::INTEGER AS template, (day - {low})::INTEGER AS day, fill,"
            f" requests::INTEGER AS requests FROM {{fills}} JOIN who USING (account) JOIN kept USING (skeleton) WHERE {chosen}"
            " ORDER BY day, account, template, fill",
        )  # fmt: skip
        links = load(
            store, connection,
            "SELECT kind::INTEGER AS kind, value, number::BIGINT AS account, first_us FROM {values} JOIN who USING (account)"
            " WHERE kind IN (0, 1, 2, 3, 4, 6) ORDER BY kind, value, account",
        )  # fmt: skip
        templates = connection.execute("SELECT skeleton FROM kept ORDER BY template").fetchnumpy()["skeleton"]
    width = len(templates) + 1
    code = rows["account"].astype(np.int64) * width + rows["template"]
    pairs, place = np.unique(code, return_inverse=True)
    table: Table = {name: rows[name] for name in ("day", *SUMS)} | {"pair": place}
    fill_pair = np.searchsorted(pairs, fills["account"].astype(np.int64) * width + fills["template"])
    _, fill = np.unique(fills["fill"], return_inverse=True)
    pair_account, pair_template = pairs // width, pairs % width
    volume = np.bincount(place, rows["requests"], len(pairs)) * (pair_template > 0)
    order = np.lexsort((volume, pair_account))
    last = np.r_[pair_account[order][1:] != pair_account[order][:-1], True]
    content = np.full(len(accounts["account"]), -1, np.int64)
    best = order[last]
    content[pair_account[best]] = np.where(volume[best] > 0, pair_template[best], -1)
    return Data(
        accounts["account"],
        np.r_[np.zeros(1, np.uint64), np.asarray(templates, np.uint64)],
        pair_account,
        pair_template,
        table,
        {"pair": fill_pair, "day": fills["day"], "fill": fill, "requests": fills["requests"]},
        Links(links["kind"].astype(np.int64), links["value"], links["account"].astype(np.int64), links["first_us"]),
        accounts["first_us"].astype(np.int64),
        content,
        low * DAY_US,
        int(table["day"].max()) + 1,
        month,
        {f"{model:016x}": day - low for model, day in new.items()},
    )


def _path(store: Store, name: str) -> str:
    return str(store.reduced / f"{name}.parquet").replace("'", "''")


def days_of(data: Data, every: int = 1) -> Iterator[Day]:
    """The streams at the end of each day, from what was seen until then.

    Args:
        data: A month.
        every: Days between two looks; the last day is always one.
    """
    pairs = len(data.pair_account)
    sums = np.zeros((len(SUMS), pairs))
    first_day = np.full(pairs, 10_000.0)
    ends = np.searchsorted(data.rows["day"], np.arange(data.days + 1), "left")
    fill_ends = np.searchsorted(data.fills["day"], np.arange(data.days + 1), "left")
    for day in range(data.days):
        if not ends[day + 1]:
            continue  # a month's logs may begin in its middle
        part = slice(ends[day], ends[day + 1])
        pair = data.rows["pair"][part]
        for number, name in enumerate(SUMS):
            np.add.at(sums[number], pair, data.rows[name][part])
        first_day[pair] = np.minimum(first_day[pair], day)
        if (day + 1) % every and day != data.days - 1:
            continue
        until = data.begin_us + (day + 1) * DAY_US
        clusters = find_clusters(data.links, data.first_us, data.content, until)
        upto = fill_ends[day + 1]
        yield _streams(data, day, sums, clusters, {name: column[:upto] for name, column in data.fills.items()})


def _streams(data: Data, day: int, sums: Floats, clusters: Clusters, fills: Table) -> Day:
    labels = clusters.labels
    seen = labels >= 0
    count = int(labels.max()) + 1
    size = np.bincount(labels[seen], minlength=count)
    # --- who names a cluster: its first account ---
    order = np.lexsort((data.accounts, data.first_us))
    order = order[seen[order]]
    root_of = np.zeros(count, np.int64)
    root_of[labels[order][::-1]] = order[::-1]
    # --- of one template, and (template 0) all that clusters of three accounts or more send ---
    width = len(data.templates)
    one = np.flatnonzero((sums[0] > 0) & (data.pair_template > 0))
    all_ = np.flatnonzero((sums[0] > 0) & (size[labels[data.pair_account]] >= 3))
    parts = []
    for pairs, template in ((one, data.pair_template[one]), (all_, np.zeros(len(all_), np.int64))):
        streams, place = np.unique(labels[data.pair_account[pairs]] * width + template, return_inverse=True)
        parts.append((streams, _features(data, sums[:, pairs], pairs, place, len(streams), fills)))
    streams = np.concatenate([streams for streams, _ in parts])
    values = np.concatenate([values for _, values in parts])
    enough = values[:, 0] >= np.log10(LEAST) - 1e-9
    cluster, template = streams[enough] // width, streams[enough] % width
    return Day(day, root_of[cluster], size[cluster], template, values[enough], clusters)


def _features(data: Data, sums: Floats, pairs: Integers, place: Integers, n: int, fills: Table) -> Floats:
    """The features of ``n`` streams from their pairs of account and template.

    Args:
        data: The month.
        sums: Sums so far, ``[sums, pairs]``.
        pairs: Indices of the pairs.
        place: Stream of each.
        n: Streams.
        fills: The sampled texts so far.
    """
    total = {name: np.bincount(place, sums[number], n) for number, name in enumerate(SUMS)}
    # An account that sends from several templates of a stream is one account.
    own, back = np.unique(place * len(data.accounts) + data.pair_account[pairs], return_inverse=True)
    stream_of, account_of = own // len(data.accounts), own % len(data.accounts)
    each = np.bincount(back, sums[0], len(own)).astype(float)
    accounts = np.bincount(stream_of, minlength=n).astype(float)
    requests = np.maximum(total["requests"], 1)
    values = np.zeros((n, len(FEATURES)))
    values[:, 0] = np.log10(requests)
    values[:, 1] = np.log10(total["tokens_out"] + 1)
    values[:, 2] = _novelty(data, pairs, place, n, fills)
    values[:, 3] = np.log10(np.maximum(accounts, 1))
    values[:, 4] = total["cot"] / requests
    values[:, 5] = np.minimum(1.0, total["asked"] / requests)
    quarters = np.stack([total[f"q{number}"] for number in range(4)]) / requests
    values[:, 6] = -(quarters * np.log(np.maximum(quarters, 1e-12))).sum(0) / np.log(4)
    values[:, 7] = total["single"] / requests
    values[:, 8] = _evenness(each, stream_of, n, accounts)
    values[:, 9] = _synchrony(data.first_us[account_of] / DAY_US, stream_of, n, accounts)
    moved = total["new_model"] / np.maximum(total["after_release"], 1)
    values[:, 10] = np.where(total["after_release"] >= 20, moved, 0.0)
    values[:, 11] = np.log10(total["tokens_out"] / requests + 1)
    return values


def _novelty(data: Data, active: Integers, place: Integers, n: int, fills: Table) -> Floats:
    """log10 of how many requests came for each one that repeated an earlier text of the stream, of any of its accounts."""
    stream_of = np.full(len(data.pair_account), -1, np.int64)
    stream_of[active] = place
    stream = stream_of[fills["pair"]]
    known = stream >= 0
    stream, fill = stream[known], fills["fill"][known]
    sampled = np.bincount(stream, fills["requests"][known], n)
    span = int(fill.max()) + 1 if len(fill) else 1
    distinct = np.bincount(np.unique(stream * span + fill) // span, minlength=n)
    # In a sample of eight texts a repeat is easily missed, so the share counts only as far as the sample goes.
    return np.asarray(np.log10((sampled + 1) / (np.maximum(sampled - distinct, 0) + 1)))


def _evenness(requests: Floats, place: Integers, n: int, accounts: Floats) -> Floats:
    """-log10 of the coefficient of variation of requests per account beyond counting noise; low for fewer than three
    accounts.
    """
    mean = np.bincount(place, requests, n) / np.maximum(accounts, 1)
    square = np.bincount(place, requests**2, n) / np.maximum(accounts, 1)
    excess = np.maximum(square - mean**2 - mean, 0.0)
    variation = np.sqrt(excess) / np.maximum(mean, 1e-9)
    return np.asarray(np.where((accounts >= 3) & (mean >= 3), -np.log10(variation + 0.05), -1.0))


def _synchrony(first: Floats, place: Integers, n: int, accounts: Floats) -> Floats:
    """-log10 of the mean distance (in days) of the accounts' first requests from their mean; low for fewer than three
    accounts.
    """
    mean = np.bincount(place, first, n) / np.maximum(accounts, 1)
    spread = np.bincount(place, np.abs(first - mean[place]), n) / np.maximum(accounts, 1)
    return np.asarray(np.where(accounts >= 3, -np.log10(spread + 0.02), -2.0))
