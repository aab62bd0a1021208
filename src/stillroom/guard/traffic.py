"""Makes a month of request logs whose truth is known: honest customers of twelve kinds, and campaigns from clumsy to careful.

The detector never sees what is here: `guard gen-traffic` writes requests in one file and the truth in another. A customer is
one or more *streams*: an account that sends a number of requests from a template, at times, addresses and with parameters of
its own law. Everything is drawn from one seed.

It is a model of traffic and not traffic. What is measured on it says how the detector behaves on these kinds; an owner's own
rate of false alarms is measured on the owner's own benign months (`guard calibrate`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.core.errors import UsageError
from stillroom.guard.log_store import COLUMNS, DAY_US, Table, database, write_rows

DAYS = 30
UNIQUE = 0
"""Of a stream's ``texts``: every request has a text of its own."""
Integers = npt.NDArray[np.uint64]
Generator = np.random.Generator


@dataclass
class Stream:
    """Requests of one account from one template.

    Attributes:
        account: Number of the account.
        group: Number of the customer or campaign that it belongs to.
        kind: Name of the kind, for the truth.
        requests: How many in the month.
        template: Number of the template; 0 draws a beginning for every request, as people do.
        texts: Different texts, drawn by Zipf's law; :data:`UNIQUE` never repeats one.
        pool: Number of the pool of networks, and its size.
        first, last: Days of activity, as fractions.
        centre, flat: Hour (UTC) of most requests, and the share that ignores the hour.
        weekend: Requests on a weekend's day against a weekday's.
        bursts: Batches that the requests come in; 0 means none.
        migrate: Days after a release until the account takes the new model; 99 means never in this month.
    """

    account: int
    group: int
    kind: str
    requests: int
    template: int = 0
    texts: int = UNIQUE
    payment: int = 0
    device: int = 0
    org: int = 0
    pool: int = 0
    pool_size: int = 1
    asn: int = 0
    ua: int = 0
    country: int = 0
    end_users: int = 0
    first: float = 0.0
    last: float = float(DAYS)
    centre: float = 14.0
    flat: float = 0.1
    weekend: float = 1.0
    bursts: int = 0
    tokens_in: float = 80.0
    tokens_out: float = 250.0
    cot: float = 0.04
    logprobs: float = 0.0
    multiple: float = 0.0
    single: float = 0.5
    tools: float = 0.0
    migrate: float = 99.0


@dataclass(frozen=True)
class Campaign:
    """What a campaign does to be hard to see.

    Attributes:
        accounts: How many accounts share the work.
        prompts: Prompts that are wanted, all different.
        cover: Share of all its requests that are something else.
        templates: Templates or paraphrases of them.
        ip: ``one`` network, a data centre's ``pool``, or ``residential`` proxies.
        payment: Shared by ``all``, by ``fives``, or by ``none``.
        start_hours: Window in which its accounts begin.
        days: For how long it goes on.
        diurnal: Whether it keeps office hours.
        cot, logprobs, multiple: Shares of prompts that ask for reasoning, log-probabilities, several answers.
        migrate: Days after a release until it moves; 99 means never.
        sdk: Whether all accounts use one client.
    """

    accounts: int = 200
    prompts: int = 20_000
    cover: float = 0.0
    templates: int = 4
    ip: str = "pool"
    payment: str = "fives"
    start_hours: float = 24.0
    days: float = 14.0
    diurnal: bool = False
    cot: float = 0.7
    logprobs: float = 0.1
    multiple: float = 0.1
    migrate: float = 99.0
    sdk: bool = True


CAMPAIGNS: dict[str, Campaign] = {
    "clumsy": Campaign(20, 20_000, 0, 1, "one", "all", 2, 10, cot=0.9, logprobs=0.5),
    "plain": Campaign(200, 20_000, 0, 4, "pool", "fives", 12, 14, cot=0.8),
    "mixed": Campaign(200, 20_000, 0.5, 20, "pool", "fives", 72, 20, True, cot=0.5, logprobs=0.0, multiple=0.05),
    "migrating": Campaign(300, 30_000, 0.3, 50, "pool", "fives", 48, 20, True, cot=0.5, migrate=0.5),
    "paraphrased": Campaign(
        200, 20_000, 0.5, 5_000, "pool", "fives", 72, 20, True, cot=0.4, logprobs=0.0, multiple=0.0
    ),
    "residential": Campaign(
        200, 20_000, 0.5, 20, "residential", "none", 72, 20, True, cot=0.4, logprobs=0.0, multiple=0.0, sdk=False
    ),
    "careful": Campaign(
        200, 2_000, 0.9, 1_000, "residential", "none", 240, 28, True, cot=0.2, logprobs=0.0, multiple=0.0, sdk=False
    ),
}
"""From clumsy to careful."""

SHARES: dict[str, float] = {
    "people": 0.22,
    "developer": 0.08,
    "company": 0.12,
    "product": 0.20,
    "pipeline": 0.06,
    "batch": 0.06,
    "wrapper": 0.10,
    "aggregator": 0.06,
    "evaluator": 0.03,
    "classroom": 0.02,
    "synthetic": 0.02,
    "agent": 0.03,
}
"""Kinds of honest customers, and their share of the requests."""


@dataclass
class Month:
    """One generated month.

    Attributes:
        streams: Everything that is sent.
        seed: What it was drawn from.
        release: Day on which a new model came.
    """

    streams: list[Stream]
    seed: int
    start_us: int
    release: float
    names: dict[int, str] = field(default_factory=dict)


class _Maker:
    """Draws customers."""

    def __init__(self, rng: Generator) -> None:
        self.rng = rng
        self.streams: list[Stream] = []
        self._next = 0

    def new(self) -> int:
        """A number that nothing else has: an account, a card, a template."""
        self._next += 1
        return self._next

    def home(self) -> dict[str, Any]:
        """Where somebody connects from: one of a few large access networks, an own address, a browser."""
        rng = self.rng
        return {
            "pool": self.new(),
            "pool_size": int(rng.integers(1, 4)),
            "asn": 100 + int(rng.zipf(1.4) % 300),
            "ua": 1 + int(rng.zipf(1.5) % 40),
            "country": 1 + int(rng.zipf(1.6) % 60),
            "device": self.new(),
            "centre": float(rng.normal(15, 5) % 24),
        }

    def cloud(self, size: int = 1) -> dict[str, Any]:
        """Servers at one of six clouds, with one of a few clients."""
        rng = self.rng
        return {
            "pool": self.new(),
            "pool_size": size,
            "asn": 1 + int(rng.zipf(1.5) % 6),
            "ua": 60 + int(rng.zipf(1.4) % 14),
            "country": 1 + int(rng.zipf(1.8) % 8),
            "centre": float(rng.normal(15, 4) % 24),
        }

    def size(self, mean: float, spread: float = 0.8) -> int:
        """Requests of a customer: log-normal with this mean."""
        return max(1, int(self.rng.lognormal(np.log(mean) - spread**2 / 2, spread)))

    def lag(self, mean: float) -> float:
        """Days until a new model is taken."""
        return float(self.rng.exponential(mean))

    def began(self) -> float:
        """The first day: most customers were there before the month."""
        return 0.0 if self.rng.random() < 0.8 else float(self.rng.uniform(0, DAYS * 0.9))

    def add(self, kind: str, group: int, account: int, requests: int, **law: Any) -> int:
        """Add a stream."""
        self.streams.append(Stream(account, group, kind, requests, **law))
        return requests

    # --- the honest kinds: each adds one customer and returns its requests ---

    def people(self) -> int:
        """Somebody who chats."""
        rng = self.rng
        card = self.new() if rng.random() < 0.3 else 0
        return self.add(
            "people", self.new(), self.new(), self.size(45, 1.1), payment=card, **self.home(), first=self.began(),
            single=0.4, cot=0.06, weekend=float(rng.uniform(0.5, 1.5)), migrate=self.lag(6),
        )  # fmt: skip

    def developer(self) -> int:
        """Somebody who tries the API: a few templates of their own, the same tests again and again."""
        rng = self.rng
        group, account, where = self.new(), self.new(), self.home() | {"ua": 60 + int(rng.zipf(1.4) % 14)}
        law = {"payment": self.new(), **where, "first": self.began(), "weekend": 0.4, "migrate": self.lag(8)}
        done = self.add("developer", group, account, self.size(45), **law, single=0.7, logprobs=0.05)
        for _ in range(int(rng.integers(0, 3))):
            done += self.add(
                "developer", group, account, self.size(30), template=self.new(), texts=int(rng.integers(3, 80)), **law,
                single=0.9, cot=float(rng.choice([0, 0, 0.5])), logprobs=float(rng.choice([0, 0, 0.3])),
            )  # fmt: skip
        return done

    def company(self) -> int:
        """Colleagues: one contract, one office, and some shared prompts."""
        rng = self.rng
        group, office = self.new(), self.home()
        card, org = self.new(), self.new() if rng.random() < 0.7 else 0
        shared = [self.new() for _ in range(int(rng.integers(0, 4)))]
        done, first = 0, self.began()
        for _ in range(int(min(80, 2 + rng.lognormal(1.8, 0.9)))):
            account = self.new()
            own = office | {"ua": 1 + int(rng.zipf(1.5) % 40), "device": self.new()}
            law = {"payment": card, "org": org, **own, "weekend": 0.1, "first": first, "migrate": self.lag(8)}
            done += self.add("company", group, account, self.size(60, 1.0), **law, single=0.4)
            for template in shared:
                if rng.random() < 0.5:
                    done += self.add(
                        "company", group, account, self.size(25), template=template, texts=int(rng.choice([UNIQUE, 200, 2000])),
                        **law, single=0.9, cot=float(rng.choice([0, 0, 0.8])),
                    )  # fmt: skip
        return done

    def product(self) -> int:
        """A product with fixed templates and free slots."""
        rng = self.rng
        group, account, card = self.new(), self.new(), self.new()
        where = self.cloud(int(rng.integers(1, 6)))
        done = 0
        for _ in range(int(rng.integers(1, 5))):
            done += self.add(
                "product", group, account, self.size(2200, 1.0), template=self.new(),
                texts=int(rng.choice([UNIQUE, 300, 3000, 30000], p=[0.35, 0.2, 0.25, 0.2])), payment=card, **where,
                flat=float(rng.uniform(0.1, 0.6)), single=0.95, tokens_out=float(rng.choice([40, 150, 500])),
                cot=float(rng.choice([0, 0, 0.9], p=[0.6, 0.25, 0.15])), migrate=self.lag(20),
                end_users=int(rng.choice([0, 500])), first=self.began(),
            )  # fmt: skip
        return done

    def pipeline(self) -> int:
        """Retrieval or translation: every text is new, answers are short, around the clock."""
        rng = self.rng
        return self.add(
            "pipeline", self.new(), self.new(), self.size(4000, 0.8), template=self.new(), payment=self.new(),
            **self.cloud(int(rng.integers(1, 4))), flat=0.7, single=1.0, tokens_in=1500,
            tokens_out=float(rng.choice([60, 300, 1200])), cot=0.0, migrate=self.lag(25), first=self.began(),
        )  # fmt: skip

    def batch(self) -> int:
        """Jobs at night over a table: classify, extract, summarise."""
        rng = self.rng
        return self.add(
            "batch", self.new(), self.new(), self.size(2500, 0.9), template=self.new(),
            texts=int(rng.choice([UNIQUE, UNIQUE, 2000])), payment=self.new(), **self.cloud(), bursts=int(rng.integers(1, 25)),
            single=1.0, tokens_out=float(rng.choice([20, 120, 600])), cot=float(rng.choice([0, 0, 0.9])),
            logprobs=float(rng.choice([0, 0, 1.0])), migrate=self.lag(20), first=self.began(),
        )  # fmt: skip

    def wrapper(self) -> int:
        """An honest wrapper: hundreds to thousands of end users behind one to three keys, one system message."""
        rng = self.rng
        group, card, where = self.new(), self.new(), self.cloud(int(rng.integers(1, 8)))
        templates = [self.new() for _ in range(int(rng.integers(1, 4)))]
        done = 0
        for account in [self.new() for _ in range(int(rng.integers(1, 4)))]:
            for template in templates:
                done += self.add(
                    "wrapper", group, account, self.size(2400, 0.7), template=template,
                    texts=int(rng.choice([UNIQUE, 40_000, 4_000])), payment=card, **where,
                    end_users=int(rng.integers(100, 5000)), flat=0.4, single=0.35, cot=0.06, migrate=self.lag(3),
                )  # fmt: skip
        return done

    def aggregator(self) -> int:
        """An honest reseller: a key for each of its customers, one contract, one network, everybody's prompts."""
        rng = self.rng
        group, card, where = self.new(), self.new(), self.cloud(int(rng.integers(8, 40)))
        popular = [self.new() for _ in range(12)]
        done, first = 0, self.began()
        for _ in range(int(rng.integers(60, 220))):
            account = self.new()
            law = where | {"payment": card, "centre": float(rng.uniform(0, 24))}
            began = max(first, float(rng.uniform(-DAYS, DAYS)))
            done += self.add(
                "aggregator", group, account, self.size(90, 1.2), **law, flat=0.3, single=0.5, cot=0.08,
                migrate=self.lag(2), first=min(began, DAYS - 1),
            )  # fmt: skip
            if rng.random() < 0.4:
                done += self.add(
                    "aggregator", group, account, self.size(120, 1.2), template=int(rng.choice(popular)),
                    texts=int(rng.choice([UNIQUE, 3000])), **law, flat=0.3, single=0.9, cot=float(rng.choice([0, 0, 0.6])),
                    migrate=self.lag(2), first=min(began, DAYS - 1),
                )  # fmt: skip
        return done

    def evaluator(self) -> int:
        """Benchmarks, run one to five times: every item once a run, log-probabilities, reasoning, at night."""
        rng = self.rng
        group, account, card, where = self.new(), self.new(), self.new(), self.cloud()
        runs, done = int(rng.integers(1, 6)), 0
        for _ in range(int(rng.integers(1, 7))):
            items = int(rng.choice([200, 500, 1300]))
            done += self.add(
                "evaluator", group, account, items * runs, template=self.new(), texts=-items, payment=card, **where,
                bursts=runs, flat=1.0, single=1.0, cot=float(rng.choice([0.0, 1.0])), logprobs=float(rng.choice([0, 1.0])),
                multiple=float(rng.choice([0, 0, 1.0])), tokens_out=float(rng.choice([5, 400, 900])), migrate=self.lag(1),
            )  # fmt: skip
        return done

    def classroom(self) -> int:
        """A course: many new accounts within an hour, behind one address, on one exercise."""
        rng = self.rng
        group, room, task = self.new(), self.home(), self.new()
        start, done = float(rng.uniform(0, DAYS - 3)), 0
        for _ in range(int(rng.integers(25, 200))):
            account = self.new()
            law = room | {"device": self.new(), "ua": 1 + int(rng.zipf(1.5) % 40)}
            law |= {"first": start + float(rng.uniform(0, 1 / 24)), "last": DAYS, "weekend": 0.2}
            done += self.add("classroom", group, account, self.size(25), **law, single=0.4)
            done += self.add(
                "classroom", group, account, self.size(12), template=task, texts=60, **law, single=0.6,
                cot=float(rng.choice([0, 0.5])),
            )  # fmt: skip
        return done

    def synthetic(self) -> int:
        """Makes training data with permission: what a campaign does, from one account that says so."""
        rng = self.rng
        group, account, card, where = self.new(), self.new(), self.new(), self.cloud(int(rng.integers(1, 4)))
        done = 0
        for _ in range(int(rng.integers(2, 15))):
            done += self.add(
                "synthetic", group, account, self.size(700, 0.8), template=self.new(), payment=card, **where, flat=0.9,
                single=1.0, cot=float(rng.uniform(0, 1)), logprobs=float(rng.choice([0, 0.5])), tokens_out=700,
                multiple=float(rng.choice([0, 0.5])), migrate=self.lag(3),
            )  # fmt: skip
        return done

    def agent(self) -> int:
        """A coding agent: long loops with tools, all from one system message."""
        rng = self.rng
        return self.add(
            "agent", self.new(), self.new(), self.size(500, 1.0), template=1_000_000 + int(rng.integers(0, 6)),
            payment=self.new(), **(self.home() | {"ua": 80 + int(rng.integers(0, 6))}), single=0.05, tools=0.95, tokens_in=6000,
            tokens_out=300, cot=0.02, weekend=0.4, migrate=self.lag(2), first=self.began(), bursts=int(rng.integers(5, 40)),
        )  # fmt: skip

    # --- the others ---

    def campaign(self, name: str, knobs: Campaign) -> None:
        """Add a campaign."""
        rng = self.rng
        group = self.new()
        begin = float(rng.uniform(1, max(1.5, DAYS - knobs.days)))
        templates = [self.new() for _ in range(knobs.templates)]
        pool = self.cloud(1 if knobs.ip == "one" else int(rng.integers(15, 40)))
        card = self.new()
        for number in range(knobs.accounts):
            account = self.new()
            if knobs.payment == "fives" and number % 5 == 0:
                card = self.new()
            paid = {"all": card, "fives": card}.get(knobs.payment, self.new())
            law = self.home() if knobs.ip == "residential" else dict(pool)
            if not knobs.sdk:
                law["ua"] = 1 + int(rng.zipf(1.5) % 40)
            first = begin + float(rng.uniform(0, knobs.start_hours / 24))
            law |= {
                "payment": paid, "first": first, "last": min(DAYS, begin + knobs.days), "migrate": knobs.migrate,
                "flat": 0.15 if knobs.diurnal else 1.0,
            }  # fmt: skip
            wanted = knobs.prompts // knobs.accounts
            for template, share in self._split(templates, wanted):
                self.add(
                    name, group, account, share, template=template, **law, single=1.0, tokens_out=700, cot=knobs.cot,
                    logprobs=knobs.logprobs, multiple=knobs.multiple,
                )  # fmt: skip
            cover = round(wanted * knobs.cover / (1 - knobs.cover))
            if cover:
                self.add(name, group, account, cover, **law, single=0.4)

    def _split(self, templates: list[int], wanted: int) -> Iterator[tuple[int, int]]:
        """An account's prompts over templates drawn for each prompt."""
        drawn = self.rng.choice(templates, wanted)
        found, counts = np.unique(drawn, return_counts=True)
        yield from zip(found.tolist(), counts.tolist(), strict=True)


def make_month(
    rows: int,
    seed: int,
    campaigns: dict[str, Campaign] | None = None,
    start_us: int = 20_454 * DAY_US,
    without: tuple[str, ...] = (),
) -> Month:
    """Draw a month.

    Args:
        rows: Requests of honest customers, roughly.
        seed: Of everything.
        campaigns: Campaigns by name.
        start_us: Its first moment.
        without: Kinds of honest customers to leave out.
    """
    maker = _Maker(np.random.default_rng([seed, 71]))
    left = {kind: share for kind, share in SHARES.items() if kind not in without}
    for kind, share in left.items():
        make: Callable[[], int] = getattr(maker, kind)
        wanted, done = rows * share / sum(left.values()), 0
        while done < wanted:
            done += make()
    for name, knobs in (campaigns or {}).items():
        maker.campaign(name, knobs)
    return Month(maker.streams, seed, start_us, release=float(maker.rng.uniform(8, 18)))


def _mix(values: npt.NDArray[Any], salt: int) -> Integers:
    """A 64-bit hash (SplitMix64); 0 stays 0, "the log does not say"."""
    with np.errstate(over="ignore"):
        mixed = values.astype(np.uint64) + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return np.where(values == 0, np.uint64(0), np.maximum(mixed, np.uint64(1)))


def rows_of(month: Month, block: int = 1_000_000) -> Iterator[tuple[Table, Table]]:
    """The requests of a month in blocks: canonical rows, and what only text shows (template and text of each)."""
    rng = np.random.default_rng([month.seed, 72])
    streams = month.streams
    names = [entry.name for entry in dataclasses.fields(Stream) if entry.name != "kind"]
    laws = {name: np.array([getattr(stream, name) for stream in streams]) for name in names}
    ends = np.cumsum(laws["requests"])
    begin = 0
    while begin < len(streams):
        until = max(begin + 1, int(np.searchsorted(ends, (ends[begin - 1] if begin else 0) + block, "right")))
        index = np.repeat(np.arange(begin, until), laws["requests"][begin:until])
        law = {name: values[index] for name, values in laws.items()}
        yield _expand(month, law, index, rng)
        begin = until


def _expand(month: Month, law: Table, index: npt.NDArray[np.int64], rng: Generator) -> tuple[Table, Table]:
    count = len(index)
    salt = month.seed % 2**31

    def chance(name: str) -> npt.NDArray[np.int64]:
        return (rng.random(count) < law[name]).astype(np.int64)

    # --- when ---
    active = law["last"] - law["first"]
    day = law["first"] + rng.random(count) * active
    weekend = (np.floor(day).astype(np.int64) % 7) >= 5
    moved = weekend & (rng.random(count) > law["weekend"])
    day = np.where(moved, law["first"] + (day - law["first"] + 2.0) % np.maximum(active, 1e-9), day)
    hour = np.where(rng.random(count) < law["flat"], rng.random(count) * 24, rng.normal(law["centre"], 3.3) % 24)
    moment = np.maximum(np.floor(day) + hour / 24, law["first"])
    which = np.floor(rng.random(count) * np.maximum(law["bursts"], 1))
    start = (
        law["first"] + (_mix(law["account"] * 1000 + which + 1, 3) % np.uint64(10_000)).astype(float) / 10_000 * active
    )
    moment = np.where(law["bursts"] > 0, start + rng.random(count) * 0.15, moment)
    moment = np.minimum(moment, DAYS - 1e-6)
    time_us = month.start_us + (moment * DAY_US).astype(np.int64)
    # --- what ---
    popular = np.minimum(rng.zipf(1.3, count), 3000)
    own = rng.integers(1 << 40, 1 << 62, count)
    heads = np.where(rng.random(count) < 0.35, 2_000_000 + popular, own)
    template = np.where(law["template"] > 0, law["template"], heads)
    universe = np.maximum(np.abs(law["texts"]), 1)
    rank = np.minimum(rng.zipf(1.1, count), 1 << 60) % universe
    # A negative number of texts: an evaluation takes every item equally often.
    order = np.arange(count) - np.searchsorted(index, index, "left")
    rank = np.where(law["texts"] < 0, order % universe, rank)
    small = law["template"].astype(np.int64) * 100_003 + rank + 1
    greeting = (law["template"] == 0) & (rng.random(count) < 0.08)
    text = np.where(
        greeting, 1 + popular, np.where(law["texts"] == UNIQUE, rng.integers(1 << 40, 1 << 62, count), small)
    )
    newer = moment >= month.release + law["migrate"]
    network = law["pool"] * 64 + (rng.random(count) * law["pool_size"]).astype(np.int64) + 1
    user = np.minimum(rng.zipf(1.2, count), 1 << 40) % np.maximum(law["end_users"], 1)
    table: Table = {
        "time_us": time_us,
        "account": _mix(law["account"], salt * 16 + 1),
        "request": rng.integers(1, 1 << 62, count).astype(np.uint64),
        "org": _mix(law["org"], salt * 16 + 2),
        "key": _mix(law["account"], salt * 16 + 3),
        "payment": _mix(law["payment"], salt * 16 + 4),
        "device": _mix(law["device"], salt * 16 + 5),
        "ip24": _mix(network, salt * 16 + 6),
        "asn": _mix(law["asn"], 7),
        "country": _mix(law["country"], 8),
        "ua": _mix(law["ua"], 9),
        "end_user": _mix(
            np.where(law["end_users"] > 0, law["account"] * 8191 + user + 1, 0),
            salt * 16 + 10,
        ),
        "model": _mix(1 + newer.astype(np.int64), 11),
        "tokens_in": np.minimum(rng.lognormal(np.log(law["tokens_in"]), 0.6), 200_000).astype(np.int64),
        "tokens_out": np.minimum(rng.lognormal(np.log(law["tokens_out"]), 0.5), 30_000).astype(np.int64),
        "choices": 1 + chance("multiple") * 3,
        "temperature": np.full(count, 1.0, np.float32),
        "logprobs": chance("logprobs"),
        "tools": chance("tools"),
        "stream": np.zeros(count, np.int64),
        "seeded": np.zeros(count, np.int64),
        "turns": np.where(rng.random(count) < law["single"], 1, 2 + rng.geometric(0.4, count)),
        "latency_ms": np.full(count, -1, np.int64),
        "status": np.full(count, 200, np.int64),
        "skeleton": _mix(template, 12),
        "fill": _mix(text, 13),
        "cot": chance("cot"),
    }  # fmt: skip
    return table, {"template": template, "text": text, "stream": index}


WORDS = [
    "amber",
    "basket",
    "candle",
    "dragon",
    "ember",
    "forest",
    "garden",
    "harbour",
    "island",
    "jacket",
    "kettle",
    "lantern",
    "meadow",
    "needle",
    "orchard",
    "pepper",
    "quiver",
    "ribbon",
    "saddle",
    "temple",
    "umbrella",
    "velvet",
    "willow",
    "yellow",
    "zipper",
    "anchor",
    "bridge",
    "copper",
    "dagger",
    "engine",
    "feather",
    "glacier",
    "hammer",
    "insect",
]


def _words(number: int, salt: int, count: int) -> str:
    """Words that a number stands for."""
    state = int(_mix(np.array([number]), salt)[0])
    found = []
    for _ in range(count):
        state, place = divmod(state, len(WORDS))
        found.append(WORDS[place])
    return " ".join(found)


def write_month(month: Month, folder: Path, form: str = "parquet") -> int:
    """Write a month's requests (``requests*.parquet`` or ``requests.jsonl``) and, apart from them, ``truth.jsonl``.

    Returns:
        The number of requests.

    Raises:
        UsageError: The folder exists, or the form is unknown.
    """
    if form not in ("parquet", "jsonl"):
        raise UsageError(f"--format {form}: unknown.", "One of: parquet, jsonl.")
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty.", "Name a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    if form == "parquet":
        with database() as connection:
            for number, (table, _) in enumerate(rows_of(month)):
                write_rows(connection, table, folder / f"requests-{number:04d}.parquet")
                total += len(table["time_us"])
    else:
        with open(folder / "requests.jsonl", "w", encoding="utf-8") as stream:
            for table, texts in rows_of(month):
                for line in _lines(table, texts):
                    stream.write(line + "\n")
                    total += 1
    ids = np.array([stream.account for stream in month.streams])
    accounts = _mix(ids, month.seed % 2**31 * 16 + 1)
    seen: set[int] = set()
    with open(folder / "truth.jsonl", "w", encoding="utf-8") as stream:
        for entry, account in zip(month.streams, accounts.tolist(), strict=True):
            if account not in seen:
                seen.add(account)
                record = {
                    "account": f"{account:016x}", "kind": entry.kind, "group": entry.group, "campaign": entry.kind in CAMPAIGNS,
                    "first": round(entry.first, 4),
                }  # fmt: skip
                stream.write(json.dumps(record) + "\n")
    return total


def _lines(table: Table, texts: Table) -> Iterator[str]:
    """Requests as OpenAI-style JSON lines."""
    for place in np.argsort(table["time_us"], kind="stable").tolist():
        at = {name: column[place].item() for name, column in table.items()}
        head = _words(int(texts["template"][place]), 21, 6)
        text = f"{head} {_words(int(texts['text'][place]), 22, 12)}{' Think step by step.' if at['cot'] == 1 else ''}"
        earlier = [{"role": "user", "content": "hello"}] * (at["turns"] - 1)
        network = at["ip24"]
        record: dict[str, Any] = {
            "time": at["time_us"] / 1e6,
            "account": f"{at['account']:016x}",
            "ip": f"10.{network % 256}.{network // 256 % 256}.{1 + network // 65536 % 250}",
            "request": {
                "model": f"m-{at['model'] % 1000}",
                "n": at["choices"],
                "logprobs": bool(at["logprobs"]),
                "tools": [{}] if at["tools"] else None,
                "messages": [*earlier, {"role": "user", "content": text}],
            },
            "response": {"usage": {"prompt_tokens": at["tokens_in"], "completion_tokens": at["tokens_out"]}},
        }
        for name in ("org", "payment", "device", "asn", "country", "ua", "end_user"):
            if at[name]:
                record[name] = f"{at[name]:x}"
        yield json.dumps(record)


__all__ = ["CAMPAIGNS", "COLUMNS", "SHARES", "Campaign", "Month", "Stream", "make_month", "rows_of", "write_month"]
