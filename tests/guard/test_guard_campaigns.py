"""Campaigns in logs: traffic with its truth apart, clusters, the baseline, a watch, and the page for a person."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import UsageError
from stillroom.guard import campaign_baseline as baselines
from stillroom.guard.campaign import days_of, load_month
from stillroom.guard.campaign_watch import cluster_name, findings, watch
from stillroom.guard.case import find_suspect, gather, page
from stillroom.guard.entities import HUB, Links, find_clusters
from stillroom.guard.findings import read_findings
from stillroom.guard.intake import intake
from stillroom.guard.log_store import KINDS, Store, create_store, database, load
from stillroom.guard.traffic import CAMPAIGNS, SHARES, Campaign, make_month, rows_of, write_month

ROWS = 12_000
MONTH = "2026-01"


def month_store(
    folder: Path, seed: int, campaigns: dict[str, Campaign] | None = None
) -> tuple[Store, dict[int, dict[str, object]]]:
    """A store of a generated month, and the truth by account."""
    write_month(make_month(ROWS, seed, campaigns, without=("aggregator",)), folder / "made")
    store = create_store(folder / "store")
    intake(sorted((folder / "made").glob("*.parquet")), store, form="parquet")
    lines = (folder / "made" / "truth.jsonl").read_text().splitlines()
    return store, {int(record["account"], 16): record for record in map(json.loads, lines)}


@pytest.fixture(scope="module")
def months(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """Eight small benign months."""
    return [month_store(tmp_path_factory.mktemp(f"month{seed}"), seed)[0] for seed in range(8)]


@pytest.fixture(scope="module")
def benign(months: list[Store]) -> baselines.Baseline:
    """Their baseline."""
    return baselines.calibrate(months, 2.0)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[int, dict[str, object]]]:
    """A month with two campaigns."""
    chosen = {name: CAMPAIGNS[name] for name in ("plain", "careful")}
    return month_store(tmp_path_factory.mktemp("attacked"), 500, chosen)


def links(pairs: list[tuple[str, int, int]]) -> Links:
    """Values of a kind that accounts have."""
    kinds, values, accounts = (np.array(column) for column in zip(*pairs, strict=True))
    numbers = np.array([KINDS.index(kind) for kind in kinds])
    return Links(numbers, values.astype(np.uint64), accounts, np.zeros(len(accounts), np.int64))


def test_a_card_links_and_a_hub_does_not() -> None:
    """Five accounts with one card are one; those of a payment processor are as many as they are."""
    many = HUB + 100
    pairs = [("payment", 7, account) for account in range(5)] + [("payment", 9, 5 + account) for account in range(many)]
    total = 5 + many
    found = find_clusters(links(pairs), np.arange(total) * 86_400_000_000, np.full(total, -1), 1 << 62)
    assert len(set(found.labels[:5].tolist())) == 1
    assert len(set(found.labels[5:].tolist())) == many
    assert found.hubs["payment"] == 1


def test_two_shared_networks_link_and_one_asn_does_not() -> None:
    """Weak values link in combination only."""
    total = 2000
    pairs = [("ip24", 10 + account, account) for account in range(20, total)]
    pairs += [("ip24", value, account) for account in range(2) for value in (1, 2)]
    pairs += [("ip24", 5, 2), ("ip24", 5, 3)] + [("asn", 3, account) for account in range(4, 20)]
    found = find_clusters(links(pairs), np.arange(total) * 86_400_000_000, np.full(total, -1), 1 << 62)
    assert found.labels[0] == found.labels[1]
    assert found.labels[2] != found.labels[3]
    assert len(set(found.labels[4:20].tolist())) == 16


def test_content_alone_never_links() -> None:
    """Whoever copies somebody's prompts from another place is not drawn into the cluster."""
    total = 3000
    content = np.full(total, -1)
    content[:10] = 1
    pairs = [("ip24", 10 + account, account) for account in range(total)]
    pairs += [("asn", 1 + account % 6, account) for account in range(total)]
    found = find_clusters(links(pairs), np.arange(total) * 86_400_000_000, content, 1 << 62)
    assert len(set(found.labels[:10].tolist())) == 10


def test_customers_of_one_cloud_that_start_together_are_not_linked() -> None:
    """One provider, its usual client, the same six hours and a popular template are what strangers share; rare ones are not."""
    total, cloud = 6000, 600
    first = np.arange(total) // 4 * 21_600_000_000  # four accounts begin in each six hours
    content = np.where(np.arange(total) % 3, 1, 2)
    content[cloud : cloud + 4] = 1
    pairs = [("asn", 1, account) for account in range(cloud)] + [("ua", 1, account) for account in range(cloud)]
    rare = [cloud, cloud + 1]
    pairs += [(kind, 2, account) for kind in ("asn", "ua") for account in rare]
    others = range(cloud + 2, total)
    pairs += [("asn", 10 + account % 40, account) for account in others]
    pairs += [("ua", 100 + account % 37, account) for account in others]
    found = find_clusters(links(pairs), first, content, 1 << 62)
    assert len(set(found.labels[:cloud].tolist())) == cloud
    assert found.labels[rare[0]] == found.labels[rare[1]]


def test_clusters_use_what_was_seen_before_the_moment() -> None:
    """Accounts and links of later are not known yet."""
    data = links([("payment", 7, account) for account in range(4)])
    later = Links(data.kind, data.value, data.account, np.array([0, 0, 500, 0]))
    first = np.array([0, 0, 0, 900])
    early = find_clusters(later, first, np.full(4, -1), 100).labels
    assert early.tolist()[3] == -1
    assert early[0] == early[1] != early[2]
    assert len(set(find_clusters(later, first, np.full(4, -1), 1000).labels.tolist())) == 1


def test_traffic_is_what_it_says(tmp_path: Path) -> None:
    """Every kind and campaign occurs, the same seed gives the same rows, and a campaign's prompts are as many as wanted."""
    made = make_month(3000, 3, {"careful": CAMPAIGNS["careful"]})
    assert {stream.kind for stream in made.streams} == {*SHARES, "careful"}
    own = [stream for stream in made.streams if stream.kind == "careful"]
    assert sum(stream.requests for stream in own if stream.template) == CAMPAIGNS["careful"].prompts
    once, again = (next(rows_of(make_month(3000, 3)))[0] for _ in range(2))
    assert all(np.array_equal(once[name], again[name]) for name in once)
    begin = made.start_us
    assert all(
        ((table["time_us"] >= begin) & (table["time_us"] < begin + 30 * 86_400_000_000)).all()
        for table, _ in rows_of(made)
    )
    with pytest.raises(UsageError, match="not empty"):
        write_month(made, tmp_path.parent)


def test_lines_and_columns_are_the_same_traffic(tmp_path: Path) -> None:
    """As JSON lines with text, the requests fall into the same accounts and streams as the columns say."""
    made = make_month(
        300, 4, {"clumsy": Campaign(5, 500, 0, 2, "one", "all", 2, 10)}, without=("aggregator", "classroom", "wrapper")
    )
    write_month(made, tmp_path / "lines", "jsonl")
    write_month(made, tmp_path / "columns")
    sizes = []
    for name, form in (("lines", "auto"), ("columns", "parquet")):
        store = create_store(tmp_path / f"store-{name}")
        intake(
            [path for path in sorted((tmp_path / name).iterdir()) if path.name.startswith("requests")], store, form=form
        )
        with database() as connection:
            sql = (
                "SELECT requests, n FROM"
                " (SELECT skeleton, sum(requests)::BIGINT AS requests,"
                " count(DISTINCT account)::BIGINT AS n FROM {streams} GROUP BY skeleton"
                " HAVING sum(requests) >= 30) ORDER BY ALL"
            )
            found = load(store, connection, sql)
        sizes.append([found["requests"].tolist(), found["n"].tolist()])
    assert sizes[0] == sizes[1]


def test_a_plain_campaign_is_found_and_honest_clusters_are_not(
    benign: baselines.Baseline, attacked: tuple[Store, dict[int, dict[str, object]]]
) -> None:
    """Its 200 accounts are one cluster, reported within days; what is reported besides stays within the bound."""
    store, truth = attacked
    watched = watch(store, benign, MONTH)
    kinds = [{str(truth[account]["kind"]) for account in suspect.accounts} for suspect in watched.alarms()]
    assert {"plain"} in kinds
    assert sum("plain" not in kind for kind in kinds) <= benign.false_alarms
    found = watched.alarms()[kinds.index({"plain"})]
    assert len(found.accounts) == 200
    assert found.e >= found.needed
    assert found.level == "ask a person"
    first = min(float(str(truth[account]["first"])) for account in found.accounts)
    assert found.alarm is not None
    assert 0 <= found.alarm + 1 - first < 7
    # The careful one is not found, and nothing says that it is not there.
    assert not any("careful" in kind for kind in kinds)
    assert any("residential" in line for line in findings(watched, benign).findings[0].cannot_conclude)


def test_an_early_look_reports_nothing_that_the_month_would_not(
    benign: baselines.Baseline, attacked: tuple[Store, dict[int, dict[str, object]]]
) -> None:
    """The highest score so far only grows, for every cluster and stratum."""
    days = list(days_of(load_month(attacked[0], MONTH)))
    whole = baselines.worst_of(days, benign.scorer)
    labels = days[-1].clusters.labels
    for place in range(0, len(days), 7):
        day = days[place]
        if not len(day.root):
            continue
        strata = np.digitize(day.size, [2, 10])
        scores = benign.scorer.scores(day.values, strata)
        for root, kind, score in zip(day.root, strata, scores, strict=True):
            same = (whole.cluster == labels[root]) & (whole.strata == kind)
            assert whole.score[same].max() >= score


def test_permitted_accounts_are_not_reported(
    benign: baselines.Baseline, attacked: tuple[Store, dict[int, dict[str, object]]]
) -> None:
    """The owner gave permission; a cluster that has another account in it besides is still shown."""
    store, truth = attacked
    plain = frozenset(account for account, record in truth.items() if record["kind"] == "plain")
    names = {suspect.name for suspect in watch(store, benign, MONTH).alarms() if set(suspect.accounts) <= plain}
    assert names
    assert not names & {suspect.name for suspect in watch(store, benign, MONTH, plain).suspects}
    some = frozenset(sorted(plain)[1:])
    assert names & {suspect.name for suspect in watch(store, benign, MONTH, some).alarms()}


def test_a_baseline_of_too_few_months_is_refused_by_name(months: list[Store]) -> None:
    """With the bound that would be possible."""
    with pytest.raises(UsageError, match="100 are the least"):
        baselines.calibrate(months[:1], 1)
    with pytest.raises(UsageError, match=r"8 benign months are too few for 0\.01 .*") as refused:
        baselines.calibrate(months, 0.01)
    possible = re.search(r"--false-alarms (\S+),", str(refused.value))
    assert possible is not None
    baselines.calibrate(months, float(possible[1]))
    with pytest.raises(UsageError, match="is not a bound"):
        baselines.calibrate(months, 0)


def test_a_store_is_no_second_benign_month(months: list[Store]) -> None:
    with pytest.raises(UsageError, match="given twice"):
        baselines.calibrate([months[0], months[1], months[0]])


def test_scores_grow_with_every_feature(benign: baselines.Baseline) -> None:
    """More of anything is never less suspicious."""
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 4, (50, 12))
    strata = rng.integers(0, 3, 50)
    before = benign.scorer.scores(values, strata)
    for feature in range(12):
        more = values.copy()
        more[:, feature] += rng.uniform(0, 2, 50)
        assert (benign.scorer.scores(more, strata) >= before - 1e-12).all()


def test_the_page_escapes_everything(benign: baselines.Baseline, tmp_path: Path) -> None:
    """Names and prompts of the attacker's choice are text on the page, and nothing is loaded or run."""
    evil = "<script>alert(1)</script>\u202e"
    log = tmp_path / "log.jsonl"
    rows = [
        {
            "time": 1_767_300_000 + 900 * number,
            "account": f"{evil}{number % 12}",
            "payment": "one",
            "asn": evil,
            "request": {
                "model": evil,
                "messages": [{"role": "user", "content": f"{evil} write a poem for me number {number}"}],
            },
        }
        for number in range(600)
    ]
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    store = create_store(tmp_path / "store")
    intake([log], store, keep_skeletons=True)
    watched = watch(store, benign, MONTH)
    suspect = find_suspect(watched, watched.suspects[0].name)
    evidence = gather(store, watched, suspect)
    shown = page(watched, benign, suspect, evidence)
    assert len(suspect.accounts) == 12
    assert "<script" not in shown
    assert "\u202e" not in shown
    assert "&lt;script&gt;" in shown
    assert "default-src 'none'" in shown
    # On a phone a number stays whole, and the bars say which days they are of.
    assert "td.n{white-space:nowrap}" in shown
    assert ">-0.0<" not in shown
    assert f"From {evidence.daily[0][0]} to {evidence.daily[-1][0]}" in shown
    assert not re.search(r"(src|href)=", shown)
    assert sum(count for _, count, _ in evidence.daily) == 600
    assert evidence.shared["payment"][0][1:] == (12, 12)
    with pytest.raises(UsageError, match="no scored cluster"):
        find_suspect(watched, cluster_name(1))


def test_the_commands(
    benign: baselines.Baseline, attacked: tuple[Store, dict[int, dict[str, object]]], tmp_path: Path
) -> None:
    """From a generated log to a page, by the commands; wrong use is one message."""
    run = CliRunner()

    def call(*words: str) -> str:
        result = run.invoke(app, ["guard", *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    few = [word for kind in SHARES if kind not in ("people", "developer", "company") for word in ("--without", kind)]
    call("gen-traffic", "-o", str(tmp_path / "made"), "--rows", "200", "--format", "jsonl", *few)
    log = str(tmp_path / "made" / "requests.jsonl")
    assert "missing: payment" in call("intake", log, "-o", str(tmp_path / "store"))
    assert "already" in call("intake", log, "-o", str(tmp_path / "store"))
    call(
        "intake",
        log,
        "-o",
        str(tmp_path / "other"),
        "--shards",
        "1/2",
        "--key-file",
        str(tmp_path / "store" / "secret.key"),
    )
    call("intake", log, "-o", str(tmp_path / "other"), "--shards", "2/2")
    parts = json.loads(call("merge", str(tmp_path / "other"), "--json"))
    assert parts["tables"] == json.loads((tmp_path / "store" / "reduced" / "reduced.json").read_text())["tables"]
    saved = tmp_path / "baseline.json"
    saved.write_text(json.dumps(benign.record()))
    store = str(attacked[0].path)
    told = call("watch", store, "--baseline", str(saved), "-o", str(tmp_path / "findings.json"))
    name = re.search(r"ask a person: (c[0-9a-f]{16})", told)
    assert name is not None
    statement, _ = read_findings(tmp_path / "findings.json")
    assert statement.predicate.findings[0].grade == "B"
    assert len((tmp_path / "findings.jsonl").read_text().splitlines()) == len(statement.predicate.findings)
    # Any name of the findings leaves them as they are, and two names never share one file of lines.
    for given, beside in (("own.jsonl", "own.jsonl.jsonl"), ("own.2026-01", "own.2026-01.jsonl")):
        assert beside in call("watch", store, "--baseline", str(saved), "-o", str(tmp_path / given))
        again, _ = read_findings(tmp_path / given)
        assert again.predicate.findings == statement.predicate.findings
        assert (tmp_path / beside).read_bytes() == (tmp_path / "findings.jsonl").read_bytes()
    call("case", name[1], "--store", store, "--baseline", str(saved), "-o", str(tmp_path / "case.html"))
    assert name[1] in (tmp_path / "case.html").read_text()
    lines = tmp_path / "permitted.jsonl"
    lines.write_text("acme-1\n")
    for words, message in (
        (["watch", store, "--baseline", str(tmp_path / "made" / "truth.jsonl")], "not a baseline"),
        (["watch", str(tmp_path / "made"), "--baseline", str(saved)], "not a store"),
        (["watch", store, "--baseline", str(saved), "--month", "2031-01"], "no requests of 2031-01"),
        (["watch", store, "--baseline", str(saved), "-o", str(tmp_path)], "is a folder"),
        (["watch", store, "--baseline", str(saved), "--keys", str(tmp_path)], "holds no keys"),
        (["watch", store, "--baseline", str(saved), "-o", str(saved)], "would be overwritten"),
        (["watch", store, "--baseline", str(saved), "--permitted", str(lines), "-o", f"{lines}"[:-1]], "overwritten"),
        (["watch", store, "--baseline", str(saved), "-o", f"{store}/store.json"], "would be overwritten"),
        (["case", name[1], "--store", store, "--baseline", str(saved), "-o", str(saved)], "would be overwritten"),
        (["calibrate", store, "-o", f"{store}/secret.key"], "would be overwritten"),
        (["intake", log, "-o", str(tmp_path / "x"), "--shards", "3/2"], "not I/N"),
        (["gen-traffic", "-o", str(tmp_path / "y"), "--campaign", "nonsense"], "unknown"),
    ):
        with pytest.raises(UsageError, match=message):
            run.invoke(app, ["guard", *words], catch_exceptions=False)
