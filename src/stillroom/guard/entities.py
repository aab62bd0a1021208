"""Which accounts act as one: clusters of accounts from what they share, without ever comparing accounts with accounts.

Accounts and the values that they share (a card, a device, a combination of network and client) are the two sides of a graph; a
cluster is a connected component. A value's weight is how rarely two accounts share it by chance:

    w(v) = log10(N / accounts with v), for a network log10(N / sqrt(accounts with v))

with N accounts (the root, since a campaign of 200 accounts behind its own networks must not make these look common by
itself). A card or device links by itself, unless more than `hub` accounts have it: then it is a payment processor or a
shared computer and says nothing. Anything weaker links only in combination (network and network, network and client, network
and start), where the weights together exceed log10(N) + 0.5: fewer than one account in three shares that much with any other
by chance. Where no network is shared, log10(N) + 2 is needed, and provider (ASN) and client weigh as one value: customers of
one cloud have that cloud's clients, so that both together say little more than one. (With weights that were added, and the
lower bar, one chance start joined a reseller's customers to a campaign in every second month.)

What accounts ask may add at most one to a combination whose other parts have at least three: content alone never links, so
no one can be drawn into a cluster by having their prompts copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.guard.log_store import KINDS

Indices = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]
HUB = 500
"""Accounts from which on a value links no one."""
OWN = {"org": 5000, "payment": HUB, "device": 100}
"""Kinds that link by themselves, and their hubs."""
SLOTS = {"ip24": 4, "ua": 1, "asn": 1}
"""Weaker kinds, and how many values of an account are used: those that it had first."""
START_US = 21_600_000_000
MARGIN, BARE_MARGIN = 0.5, 2.0
"""By how much a combination has to be rarer than one in all accounts: with a network, and without any."""
CONTENT_MOST, CONTENT_FLOOR = 1.0, 3.0
COMBINATIONS: tuple[tuple[tuple[str, int], ...], ...] = (
    *((("ip24", one), ("ip24", two)) for one in range(4) for two in range(one + 1, 4)),
    *((("ip24", slot), ("start", 0)) for slot in range(4)),
    *((("ip24", slot), ("ua", 0)) for slot in range(4)),
    *((("ip24", slot), ("content", 0)) for slot in range(4)),
    (("asn+ua", 0), ("start", 0), ("content", 0)),
)
"""Of slots of kinds; ``start`` is the six hours in which an account was first seen, ``content`` its most frequent template."""


@dataclass(frozen=True)
class Links:
    """Values that accounts have: parallel arrays.

    Attributes:
        kind: Index in :data:`KINDS`.
        value: Digest.
        account: Index of the account.
        first_us: When the account had it first.
    """

    kind: npt.NDArray[np.int64]
    value: npt.NDArray[np.uint64]
    account: Indices
    first_us: Indices


@dataclass(frozen=True)
class Clusters:
    """A partition of the accounts.

    Attributes:
        labels: Cluster of each account, from 0; -1 where it was not seen yet.
        edges: Per kind of link: how many values linked accounts.
        hubs: Per kind: how many values were cut because too many accounts have them.
    """

    labels: Indices
    edges: dict[str, int]
    hubs: dict[str, int]


def find_clusters(links: Links, first_us: Indices, content: Indices, until_us: int) -> Clusters:
    """Cluster the accounts that were seen before a moment, by what was seen before it.

    Args:
        links: What accounts have.
        first_us: When each account was first seen, ``[accounts]``.
        content: Index of each account's most frequent template, ``[accounts]``; -1 for none.
        until_us: The moment.
    """
    from scipy.sparse import coo_matrix  # type: ignore[import-untyped,unused-ignore]
    from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped,unused-ignore]

    accounts = len(first_us)
    seen = first_us < until_us
    total = max(2, int(seen.sum()))
    rows: list[Indices] = []
    columns: list[npt.NDArray[np.uint64]] = []
    edges: dict[str, int] = {}
    hubs: dict[str, int] = {}

    def connect(name: str, who: Indices, values: npt.NDArray[np.uint64], hub: int, salt: int) -> None:
        """Link the accounts of every value that at least two and at most ``hub`` have."""
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        have = counts[place]
        linking = (have > 1) & (have <= hub)
        hubs[name] = hubs.get(name, 0) + int((counts > hub).sum())
        edges[name] = edges.get(name, 0) + int(((counts > 1) & (counts <= hub)).sum())
        rows.append(who[linking])
        columns.append(_hash(values[linking], salt))

    current = links.first_us < until_us
    slots: dict[tuple[str, int], tuple[npt.NDArray[np.uint64], Weights]] = {}
    for number, kind in enumerate(KINDS):
        if kind not in OWN and kind not in SLOTS:
            continue
        chosen = current & (links.kind == number)
        who, values, since = links.account[chosen], links.value[chosen], links.first_us[chosen]
        if kind in OWN:
            connect(kind, who, values, OWN[kind], number + 1)
            continue
        weight = _weights(values, total, root=kind == "ip24")
        order = np.lexsort((values, since, who))
        who, values, weight = who[order], values[order], weight[order]
        begins = np.r_[True, who[1:] != who[:-1]] if len(who) else np.zeros(0, bool)
        starts = np.flatnonzero(begins)
        rank = np.arange(len(who)) - np.repeat(starts, np.diff(np.r_[starts, len(who)]))
        for slot in range(SLOTS[kind]):
            at = rank == slot
            slots[kind, slot] = _spread(accounts, who[at], values[at], weight[at])
    if ("asn", 0) in slots and ("ua", 0) in slots:
        # Together, since a cloud's customers have a cloud's clients: apart, both would count twice.
        both = np.flatnonzero((slots["asn", 0][1] > 0) & (slots["ua", 0][1] > 0))
        pair = _hash(_hash(slots["asn", 0][0][both], 7) + slots["ua", 0][0][both], 8)
        slots["asn+ua", 0] = _spread(accounts, both, pair, _weights(pair, total))
    everyone = np.flatnonzero(seen)
    start = (first_us[everyone] // START_US + 1).astype(np.uint64)
    slots["start", 0] = _spread(accounts, everyone, start, _weights(start, total))
    told = np.flatnonzero(seen & (content >= 0))
    family = (content[told] + 1).astype(np.uint64)
    slots["content", 0] = _spread(accounts, told, family, np.minimum(_weights(family, total), CONTENT_MOST))
    for parts in COMBINATIONS:
        if any(part not in slots for part in parts):
            continue
        weight = sum((slots[part][1] for part in parts), np.zeros(accounts))
        others = sum((slots[part][1] for part in parts if part[0] != "content"), np.zeros(accounts))
        whole = np.all([slots[part][0] > 0 for part in parts], axis=0)
        if any(kind == "content" for kind, _ in parts):
            whole &= others >= CONTENT_FLOOR
        kinds = [kind for kind, _ in parts]
        needed = np.log10(total) + (MARGIN if "ip24" in kinds else BARE_MARGIN)
        who = np.flatnonzero(whole & (weight >= needed))
        if kinds == ["ip24", "ip24"]:
            # The same two networks, in whichever order they were met.
            combined = slots[parts[0]][0][who] + slots[parts[1]][0][who]
        else:
            combined = np.zeros(len(who), np.uint64)
            for salt, part in enumerate(parts):
                combined = _hash(combined + slots[part][0][who], salt + 11)
        name = "+".join(kinds)
        connect(name, who, combined, HUB, 100 + sum(map(ord, name)))
    who, values = np.concatenate(rows), np.concatenate(columns)
    found, place = np.unique(values, return_inverse=True)
    size = accounts + len(found)
    graph = coo_matrix((np.ones(len(who), np.int8), (who, accounts + place)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    result = np.full(accounts, -1, np.int64)
    _, result[seen] = np.unique(labels[:accounts][seen], return_inverse=True)
    return Clusters(result, edges, hubs)


def _weights(values: npt.NDArray[np.uint64], total: int, root: bool = False) -> Weights:
    """How rarely two accounts share each value, as -log10; 0 for a network that is a hub."""
    if not len(values):
        return np.zeros(0)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    have = counts[place].astype(float)
    weight = np.log10(np.maximum(1.0, total / (np.sqrt(have) if root else have)))
    return np.where(have > HUB, 0.0, weight) if root else weight


def _spread(
    accounts: int, who: Indices, values: npt.NDArray[np.uint64], weight: Weights
) -> tuple[npt.NDArray[np.uint64], Weights]:
    """Values and weights by account; 0 where an account has none."""
    by_account = np.zeros(accounts, np.uint64), np.zeros(accounts)
    by_account[0][who] = values
    by_account[1][who] = weight
    return by_account


def _hash(values: npt.NDArray[Any], salt: int) -> npt.NDArray[np.uint64]:
    """Mix 64-bit values (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        mixed = values.astype(np.uint64) + np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
