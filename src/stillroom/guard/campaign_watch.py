"""Compares a month's clusters with the baseline, and says which a person should look at.

What comes out is a list for a person, never a ban: accounts that act as one, how unlike honest ones, and why.
"""

from __future__ import annotations

import contextlib
import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stillroom.core import files
from stillroom.guard.campaign import FEATURES, LEAST, STRATA, Data, Day, Floats, Integers, days_of, load_month
from stillroom.guard.campaign_baseline import BUDGET, LAMBDA, Baseline, Worst, all_permitted, worst_of
from stillroom.guard.evalues import e_bh
from stillroom.guard.findings import Finding, Findings, Rank, findings_of
from stillroom.guard.log_store import DAY_US, Store

ALPHA = 0.1
CANNOT = (
    "That anybody trained a model on the answers: this is about requests, not about models.",
    "Who is behind the accounts: they act as one, no matter who they are.",
    "That it is forbidden: terms decide, and permission may have been given.",
    "That other clusters are honest: a campaign from residential addresses that shares nothing, or one that is a small part of"
    " a wrapper's traffic, looks like its cover.",
    "The rate of false alarms on traffic unlike the benign months that the baseline was made from.",
)
NULL = (
    "this cluster's month is exchangeable with the months of honest clusters of its size in the baseline"
    " (their scores could be swapped without changing the joint distribution)"
)


@dataclass(frozen=True)
class Suspect:
    """A cluster, and how unlike the baseline it is.

    Attributes:
        name: Of the cluster: of the digest of the account that was seen first.
        accounts: Digests of its accounts at the end.
        stratum: Index in :data:`STRATA`.
        score: Highest score.
        e: E-value of it.
        needed: E-value from which on it is reported.
        rank, of: Place among the benign clusters of its stratum and itself.
        day: Day of the highest score, from 0.
        alarm: Day on which it was reported first; None where it was not.
        template: Index of the template in the month's data; 0 stands for all requests of the cluster.
        requests: Requests of the stream that made the score.
        values, parts: Features of that stream, and their surprisals.
        level: ``ask a person``, ``watch`` or ``none``.
        discovered: Named by e-BH at :data:`ALPHA`.
    """

    name: str
    accounts: tuple[int, ...]
    stratum: int
    score: float
    e: float
    needed: float
    rank: int
    of: int
    day: int
    alarm: int | None
    template: int
    requests: int
    values: tuple[float, ...]
    parts: tuple[float, ...]
    level: str
    discovered: bool


@dataclass(frozen=True)
class Watched:
    """A month under watch.

    Attributes:
        month: Its name.
        suspects: Clusters with at least one scored stream, the highest e-value first.
        clusters: All clusters.
        drift: By stratum with at least 20 scored clusters: share of clusters above the baseline's 95th percentile; 0.05
        where nothing changed. data: The month's data.
        days: Its days.
    """

    month: str
    suspects: tuple[Suspect, ...]
    clusters: int
    drift: dict[str, float]
    data: Data
    days: list[Day]

    def alarms(self) -> list[Suspect]:
        """Those to ask a person about."""
        return [suspect for suspect in self.suspects if suspect.alarm is not None]

    def date(self, day: int) -> str:
        """The date of a day of the month."""
        moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(
            microseconds=self.data.begin_us + day * DAY_US
        )
        return moment.date().isoformat()


def cluster_name(digest: int) -> str:
    """The name of the cluster whose first account has this digest."""
    return f"c{digest:016x}"


def watch(store: Store, baseline: Baseline, month: str, permitted: frozenset[int] = frozenset()) -> Watched:
    """Compare a month with a baseline.

    Args:
        store: The store.
        baseline: Of benign months.
        month: Such as 2026-01; a month that is not over is taken as far as it goes.
        permitted: Digests of accounts that may do what a campaign does; a cluster of only these is not reported.
    """
    data = load_month(store, month)
    days = list(days_of(data))
    strata = range(len(STRATA))
    worst = worst_of(days, baseline.scorer)
    now = [float((worst.strata == kind).sum()) for kind in strata]
    limits = np.array([baseline.limit(kind, now[kind]) for kind in strata])
    worst = worst_of(days, baseline.scorer, limits)
    values = np.zeros(len(worst.score))
    for kind in strata:
        chosen = worst.strata == kind
        values[chosen] = baseline.e_values(worst.score[chosen], kind)
    labels = days[-1].clusters.labels
    count = int(labels.max()) + 1
    allowed = all_permitted(data, days, permitted)
    # An average of e-values with fixed weights is an e-value: one for each cluster.
    whole = np.zeros(count)
    np.add.at(whole, worst.cluster, values * np.array(BUDGET)[worst.strata])
    whole[allowed] = 0
    discovered = e_bh(whole, ALPHA)
    suspects = [
        _suspect(data, baseline, worst, place, values[place], now, labels, discovered)
        for place in _best_places(worst, values, baseline, now)
        if not allowed[worst.cluster[place]]
    ]
    drift = {}
    for kind in strata:
        scores = worst.score[worst.strata == kind]
        if len(baseline.pools[kind]) and len(scores) >= 20:
            border = np.percentile(baseline.pools[kind], 95) / (LAMBDA * np.log(10))
            drift[STRATA[kind]] = round(float((scores > border).mean()), 4)
    order = sorted(suspects, key=lambda found: (found.alarm is None, -found.e, found.name))
    return Watched(month, tuple(order), count, drift, data, days)


def _best_places(worst: Worst, values: Floats, baseline: Baseline, now: list[float]) -> list[int]:
    """For every cluster, the place of the stratum in which it is nearest to a report."""
    needed = np.array([baseline.needed(kind, now[kind]) for kind in range(len(STRATA))])
    nearness = values / needed[worst.strata]
    order = np.lexsort((worst.score, nearness, worst.first >= 0, worst.cluster))
    ends = np.r_[worst.cluster[order][1:] != worst.cluster[order][:-1], True] if len(order) else np.zeros(0, bool)
    return [int(place) for place in order[ends]]


def _suspect(
    data: Data,
    baseline: Baseline,
    worst: Worst,
    place: int,
    e: float,
    now: list[float],
    labels: Integers,
    discovered: npt.NDArray[np.bool_],
) -> Suspect:
    kind, cluster = int(worst.strata[place]), int(worst.cluster[place])
    needed = baseline.needed(kind, now[kind])
    pool = baseline.pools[kind]
    score = float(worst.score[place])
    alarm = int(worst.first[place]) if worst.first[place] >= 0 else None
    parts = baseline.scorer.parts(worst.values[place : place + 1], worst.strata[place : place + 1])[0]
    return Suspect(
        cluster_name(int(data.accounts[worst.root[place]])),
        tuple(int(account) for account in data.accounts[labels == cluster]),
        kind,
        score,
        float(e),
        needed,
        1 + int((pool >= score * LAMBDA * np.log(10)).sum()),
        len(pool) + 1,
        int(worst.day[place]),
        alarm,
        int(worst.template[place]),
        round(10 ** float(worst.values[place][0])),
        tuple(float(value) for value in worst.values[place]),
        tuple(float(part) for part in parts),
        "ask a person" if alarm is not None else "watch" if e >= needed / 5 else "none",
        bool(discovered[cluster]),
    )


def findings(watched: Watched, baseline: Baseline) -> Findings:
    """The clusters to ask a person about, as findings."""
    found = []
    for suspect in watched.alarms():
        assert suspect.alarm is not None
        found.append(
            Finding(
                test="campaign/cluster",
                grade="B",
                verdict="ask a person",
                null=NULL,
                statistic={
                    "cluster": suspect.name,
                    "accounts": len(suspect.accounts),
                    "stratum": STRATA[suspect.stratum],
                    "score": round(suspect.score, 3),
                    "e needed": round(suspect.needed, 2),
                    "first reported": watched.date(suspect.alarm),
                    "template": f"{int(watched.data.templates[suspect.template]):016x}"
                    if suspect.template
                    else "all requests",
                    "requests in the stream": suspect.requests,
                    "named by e-BH at 0.1": suspect.discovered,
                    "features": {
                        name: {"value": round(value, 3), "surprisal": round(part, 2)}
                        for name, value, part in zip(FEATURES, suspect.values, suspect.parts, strict=True)
                    },
                    "digests of accounts": [f"{account:016x}" for account in suspect.accounts[:2000]],
                },
                e=round(suspect.e, 4),
                rank=Rank(rank=min(suspect.rank, suspect.of), of=suspect.of) if suspect.of >= 2 else None,
                correction=(
                    f"reported at e >= {suspect.needed:.4g}, so that at most {baseline.false_alarms:g} honest clusters a month"
                    " are on average (Markov's inequality, under any dependence between clusters and at any day of the month)"
                ),
                cannot_conclude=CANNOT,
                parameters={
                    "month": watched.month,
                    "false alarms per month": baseline.false_alarms,
                    "benign months": baseline.months,
                    "least requests of a stream": LEAST,
                    "mitre atlas": ["AML.T0024.002", "AML.T0005"],
                    "owasp": "LLM10:2025",
                },
            )
        )
    return findings_of(found, notes_of(watched, baseline))


def notes_of(watched: Watched, baseline: Baseline) -> list[str]:
    """What a reader has to know besides."""
    scored = len(watched.suspects)
    notes = [
        f"{watched.clusters:,} clusters of {len(watched.data.accounts):,} accounts; {scored:,} of them sent at least {LEAST}"
        " requests from one template and could be scored. The others were not looked at."
    ]
    for kind, name in enumerate(STRATA):
        if not np.isfinite(baseline.limit(kind)) and len(baseline.pools[kind]):
            notes.append(f"No alarm is possible for clusters with {name}: too few benign months for this bound.")
        elif not len(baseline.pools[kind]):
            notes.append(f"The baseline has no cluster with {name}: none can be reported.")
    for name, share in watched.drift.items():
        if share > 0.15:
            notes.append(
                f"Drift: {share:.0%} of the clusters with {name} score above the baseline's 95th percentile, where 5 % would be"
                " expected. The bound holds for traffic like the baseline's; look whether your traffic changed."
            )
    hubs = {name: count for name, count in watched.days[-1].clusters.hubs.items() if count}
    if hubs:
        notes.append(
            "Values that too many accounts share to link any: "
            + ", ".join(f"{n} of {k}" for k, n in hubs.items())
            + "."
        )
    return notes


def read_permitted(path: Path | None, store: Store) -> frozenset[int]:
    """The digests of accounts that a file names, one per line (names as in the logs, or digests of 16 hex digits).

    Raises:
        UsageError: The file cannot be read.
    """
    from stillroom.core.errors import UsageError
    from stillroom.guard.intake_text import Redactor

    if path is None:
        return frozenset()
    data = None
    with contextlib.suppress(OSError):
        data = files.read_at_most(path, 64 << 20)
    if data is None:
        raise UsageError(f"{path} is not a file of account names.", "Write one account a line.")
    redactor = Redactor(store.key)
    found = set()
    for line in data.decode("utf-8-sig", "replace").split("\n"):
        name = line.strip()
        if name:
            found.add(redactor.value("account", name))
            if len(name) == 16 and all(character in "0123456789abcdef" for character in name):
                found.add(int(name, 16))
    return frozenset(found)
