"""Request logs become rows: every format, hostile lines, and parts that add up to the whole."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import OutOfMemory, UsageError
from stillroom.guard import intake as reading
from stillroom.guard.campaign import days_of, last_month, load_month, months_of
from stillroom.guard.intake import NO_ACCOUNT, NO_TIME, OUT_OF_RANGE, intake, network
from stillroom.guard.intake_formats import litellm, nginx, openai, otel, time_of, vllm
from stillroom.guard.intake_text import Redactor, printable, skeleton
from stillroom.guard.log_store import MOST, Store, create_store, database, load, locked, merge, open_store
from stillroom.guard.traffic import make_month, write_month


def line(number: int, **other: object) -> dict[str, object]:
    """A row as a proxy writes it."""
    return {
        "time": 1_790_000_000 + 61 * number,
        "account": f"acme-{number % 7}",
        "ip": f"203.0.113.{number % 200}",
        "request": {
            "model": "m-1",
            "n": 2,
            "messages": [{"role": "user", "content": f"Solve problem {number} step by step: how many apples has Ann?"}],
        },
        "response": {"usage": {"prompt_tokens": 20, "completion_tokens": 100 + number}},
        **other,
    }


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_the_formats() -> None:
    """Each adapter finds time, account, model and usage where its format has them."""
    row = openai(line(3))
    assert (row.account, row.model, row.tokens_out, row.choices, row.turns) == ("acme-3", "m-1", 103, 2, 1)
    row = litellm(
        {
            "startTime": "2026-10-01 10:00:00.5",
            "endTime": "2026-10-01T10:00:02.500Z",
            "api_key": "88dc28d0f030c55ed4ab77ed8faf098196cb1c05df778539800c9f1243fe6b4b",
            "user": "u-7",
            "end_user": "e",
            "model": "m",
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "messages": {},
            "requester_ip_address": "198.51.100.4",
        }
    )
    assert (row.account, row.latency_ms, row.tokens_in, row.user) == ("u-7", 2000, 5, None)
    for names in ("input_tokens output_tokens", "prompt_tokens completion_tokens"):
        have = [
            {"key": f"gen_ai.usage.{name}", "value": {"intValue": str(4 + index)}}
            for index, name in enumerate(names.split())
        ]
        have.append({"key": "enduser.id", "value": {"stringValue": "t-1"}})
        row = otel({"startTimeUnixNano": "1790000000000000000", "attributes": have})
        assert (row.account, row.tokens_in, row.tokens_out) == ("t-1", 4, 5)
        assert row.time_us == 1_790_000_000_000_000
    found = nginx(
        '203.0.113.9 - - [10/Oct/2026:13:55:36 +0200] "POST /v1/chat HTTP/1.1" 200 51 "-" "curl/8" key=ab12 rt=1.5'
    )
    assert found is not None
    assert (found.account, found.latency_ms, found.time_us) == ("ab12", 1500, time_of("2026-10-10T11:55:36+00:00"))
    found = vllm('2026-10-10 13:55:36,120 INFO:     198.51.100.7:5123 - "POST /v1/completions HTTP/1.1" 200 OK')
    assert found is not None
    assert found.account == "ip 198.51.100.7"


CAME = "203.0.113.1 - - [10/Oct/2026:13:55:36 +0000]"
LONG = "x" * 1001


@pytest.mark.parametrize(
    ("said", "account"),
    [
        (f'{CAME} "POST /v1/x HTTP/1.1" 200 1 "-" "<{LONG}> key=victim" key=own rt=1', "own"),
        (rf'{CAME} "POST /v1/x HTTP/1.1" 200 1 "-" "a\" key=victim " key=own rt=1', "own"),
        (rf'{CAME} "POST /v1/x HTTP/1.1" 200 1 "key=victim \\" "a" key=own rt=1', "own"),
        (rf'{CAME} "GET /v1/x?x=\"a HTTP/1.1" 200 1 "-" "a" key="own" rt=1', "own"),
        (f'{CAME} "GET /v1/x?x={LONG * 30} HTTP/1.1" 200 1 "-" "a" key=own rt="1.000"', "own"),
        (f'{CAME} "GET / HTTP/1.1" 200 1 "-" "a" "key=victim" for:"x key=victim" key=own rt=1', "own"),
        (f'{CAME} "GET / HTTP/1.1" 200 1 "-" "a" rt=1 key=own key=victim rt=3', "own"),
        (f'{CAME} "GET / HTTP/1.1" 200 1 "-" "a" rt=1 key="victim no" key=victim', "victim no"),
        (f'{CAME} "GET / HTTP/1.1" 200 1 "-" "a" key=- rt=1 key=victim', "ip 203.0.113.1"),
        (f'{CAME} "GET / HTTP/1.1" 200 1 "-" "a" rt=1 "no end key=victim', "ip 203.0.113.1"),
        (f'{CAME} "GET / HTTP/1.1" 200 1 rt=1', "ip 203.0.113.1"),
        (f'{CAME} "GET / HTTP/1.1" 200 1 "-" "a" rt="1.0" key="own"', "own"),
        (f'{CAME} "GET / HTTP/1.1" 200 1 "-" "a" rt="1.0, 0.5" uct="0.0" key=own', "own"),
        (f'{CAME} "GET / HTTP/1.1" 200 1 "-" "a" rt="1" "key=victim"', "ip 203.0.113.1"),
        (CAME.replace("- - [", '- "" [') + ' "GET / HTTP/1.1" 401 1 "-" "a" rt=1', "ip 203.0.113.1"),
        (CAME.replace("- - [", "- ann lee [") + ' "GET / HTTP/1.1" 401 1 "-" "a" rt=1', "ann lee"),
        (CAME.replace("- - [", r"- y [10/Oct/2020:01:01:01 +0000] \"GET [") + ' "GET / HTTP/1.1" 401 1 rt=1',
         r"y [10/Oct/2020:01:01:01 +0000] \"GET"),
    ],
)  # fmt: skip
def test_a_client_writes_its_requests_onto_no_other_account(said: str, account: str, tmp_path: Path) -> None:
    """What a client sends is in quotes or before the account; it neither names one nor keeps the line from being read."""
    found = nginx(said)
    assert found is not None
    assert (found.account, found.latency_ms, found.time_us) == (account, 1000, time_of("2026-10-10T13:55:36+00:00"))
    (tmp_path / "log").write_text(said + "\n")
    report = intake([tmp_path / "log"], create_store(tmp_path / "store"))
    assert (report.rows, report.formats, report.skipped) == (1, {"nginx": 1}, {})


@pytest.mark.parametrize(
    "line",
    [
        f'{CAME} "' + '\\"' * 200_000,
        f'{CAME} "a" 200 1 ' + '"\\' * 200_000,
        f'{CAME} "a" 200 1 ' + "key=" * 200_000,
        "1.1.1.1 - " + " [" * 200_000,
        "1.1.1.1 - " + f"x {CAME[16:]} " * 20_000 + '"',
        "2026-10-10 13:55:36 INFO: " + "1.1.1.1:1 - " * 50_000,
    ],
)
def test_hostile_access_lines_take_no_time(line: str) -> None:
    began = time.process_time()
    nginx(line)
    vllm(line)
    assert time.process_time() - began < 5


def test_a_long_address_is_read_of_vllm_too() -> None:
    found = vllm(f'2026-10-10 13:55:36 INFO:     198.51.100.7:5123 - "GET /{LONG * 5} HTTP/1.1" 200 OK')
    assert found is not None
    assert found.account == "ip 198.51.100.7"


def test_a_byte_order_mark_hides_no_row(tmp_path: Path) -> None:
    for name, text in (("a", json.dumps(line(1))), ("b", f'{CAME} "GET / HTTP/1.1" 200 1 "-" "a" key=own')):
        (tmp_path / name).write_text(f"\ufeff{text}\n", encoding="utf-8")
        report = intake([tmp_path / name], create_store(tmp_path / f"store-{name}"))
        assert (report.rows, report.skipped) == (1, {})


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
def test_times_of_any_unit(unit: int) -> None:
    """Seconds to nanoseconds mean the same moment, also as a string; what is no time of this century is none."""
    for text in (str(1_790_000_000 * unit), f" {1_790_000_000 * unit}.0", f"{1.79e9 * unit:e}"):
        assert time_of(text) == 1_790_000_000_000_000
    assert time_of("1764010112345") == time_of(1764010112345) == 1_764_010_112_345_000
    assert time_of("20260131") == time_of("2026-01-31") == 1_769_817_600_000_000
    assert time_of(1_790_000_000 * unit) == 1_790_000_000_000_000
    assert time_of(-5) is None
    assert time_of(float("nan")) is None
    assert time_of(10**400) is None


def test_requests_of_one_template_share_a_skeleton() -> None:
    """What fills a slot is masked; another template is another skeleton, and another secret another digest."""
    one, two = 'Translate 17 lines of "Faust" for Anna into French', 'Translate 9 lines of "Emma" for Bob into French'
    assert skeleton(one) == skeleton(two)
    redactor = Redactor(b"k" * 32)
    assert redactor.text("", one).skeleton == redactor.text("", two).skeleton
    assert redactor.text("", one).fill != redactor.text("", two).fill
    assert redactor.text("", one).fill == redactor.text("", one.upper()).fill
    assert redactor.text("", one).fill != Redactor(b"l" * 32).text("", one).fill
    assert skeleton("Summarise this letter in a few words") != skeleton(one)


def test_hostile_lines_are_counted_and_never_fatal(tmp_path: Path) -> None:
    """Every bad line has a reason; good ones around it are taken."""
    log = tmp_path / "log.jsonl"
    bad = [
        b'{"time": 1790000000, "account": "x", "a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"{" + b'"k": "' + b"A" * 300_000 + b'"}',
        b"\x00\x01\x02",
        b'{"time": 1790000000}',
        b'{"account": "no time"}',
        b"[1, 2]",
        b'{"time": ' + b"9" * 6000 + b', "account": "x"}',
        b'{"time": 1790000000, "account": {"a": 1}}',
        b'{"time": 1790000000, "account": "odd", "request": {"messages": [1, null, {"role": "user", "content": [3]}]}}',
    ]
    good = [json.dumps(line(number)).encode() for number in range(5)]
    hostile = (
        b'{"time": 1790000000, "account": "\xff\xfe\\u001b[31m", "request": {"messages": "\'; DROP TABLE rows; --"}}'
    )
    log.write_bytes(b"\n".join([*bad, hostile, *good]) + b'\n{"time": 17900')
    store = create_store(tmp_path / "store")
    report = intake([log], store, line_bytes=250_000)
    assert report.rows == len(good) + 2
    assert sum(report.skipped.values()) == len(bad) - 1
    assert report.waiting == [(log, len('{"time": 17900'))]
    assert report.skipped["nested too deeply"] == 1
    assert report.skipped["longer than 250,000 bytes"] == 1
    assert report.repaired == {"not UTF-8: bytes replaced": 1}
    with database() as connection:
        names = load(store, connection, "SELECT name FROM {names}")["name"]
    assert not any("\x1b" in name for name in names)
    assert report.missing["payment"] == 1.0


NUMBERS = (
    -1,
    -(10**30),
    10**30,
    10**400,
    2**31,
    3e9,
    1e300,
    0.5,
    True,
    False,
    None,
    "",
    "inf",
    "nan",
    "-5",
    "9" * 60,
    [],
    {},
    "x",
)


def stored(store: Store, column: str) -> list[float]:
    with database() as connection:
        rows = f"read_parquet('{store.path}/parts/*/rows-*.parquet')"
        return [row[0] for row in connection.execute(f"SELECT {column} FROM {rows} ORDER BY ALL").fetchall()]


def test_no_number_keeps_a_row_from_being_read(tmp_path: Path) -> None:
    """Whatever a format has in place of a number: each line is a row, in its columns' ranges."""
    lines: list[object] = []
    for value in NUMBERS:
        lines.append(line(1, status=value, latency_ms=value, request={"n": value, "temperature": value, "seed": value,
                          "logprobs": value, "tools": value, "stream": value}, response={"status_code": value},
                          usage={"prompt_tokens": value, "completion_tokens": value}))  # fmt: skip
        lines.append({"time": 1_790_000_000, "log": "stillroom", "account": "x", "turns": value, "seeded": value})
        names = ("request.temperature", "request.choice.count", "usage.input_tokens", "usage.output_tokens")
        have = {f"gen_ai.{name}": value for name in names}
        lines.append({"startTimeUnixNano": "1790000000000000000", "attributes": have | {"user.id": "y"}})
    report = intake([write(tmp_path / "log.jsonl", lines)], create_store(tmp_path / "store"))
    assert (report.rows, report.skipped) == (len(lines), {})
    assert report.repaired[OUT_OF_RANGE] > 10
    for name, most in MOST.items():
        found = stored(open_store(tmp_path / "store"), name)
        assert min(found) >= -1, name
        assert max(found) <= most, name
    # Infinity and truth are no counts; a huge one is the greatest.
    assert {-1, 1, 0, 1000} >= set(stored(open_store(tmp_path / "store"), "choices"))


@pytest.mark.parametrize(
    ("began", "ended"),
    [("startTime", "endTime"), ("start_time", "end_time"), ("startTimeUnixNano", "endTimeUnixNano")],
)
def test_a_span_of_years_is_one_row(tmp_path: Path, began: str, ended: str) -> None:
    """More milliseconds than the column holds: the longest that it holds."""
    rows = [
        {began: "2026-10-01", ended: "2026-10-27", "api_key": "k", "gen_ai.x": 1, "user.id": "x"},
        {began: "2026-10-01", ended: "2099-10-27", "api_key": "k", "gen_ai.x": 1, "user.id": "x"},
        {began: "2026-10-02", ended: "2026-10-01", "api_key": "k", "gen_ai.x": 1, "user.id": "x"},
    ]
    report = intake([write(tmp_path / "log.jsonl", rows)], create_store(tmp_path / "store"))
    assert report.rows == 3
    assert report.repaired == {OUT_OF_RANGE: 2}
    assert stored(open_store(tmp_path / "store"), "latency_ms") == [-1, 2**31 - 1, 2**31 - 1]


def test_numbers_of_canonical_rows_are_bounded_and_counted(tmp_path: Path) -> None:
    """What customers chose passes through other pipelines too; a row without time or account is counted."""
    path = tmp_path / "rows.parquet"
    values = (
        "(1790000000000000, 5, 100000, 99999999999999, true, 'nan'::DOUBLE), (1790000000000000, 5, -70000, -5, false, 1),"
        " (NULL, 5, 1, 1, true, 1), (9000000000000000000, 5, 1, 1, true, 1), (-1, 5, 1, 1, true, 1),"
        " (1790000000000000, 0, 1, 1, true, 1), (1790000000000000, NULL, 1, 1, true, 1), (1790000000000000, 5, 3, 7, NULL, 1)"
    )
    columns = "time_us, account, choices, latency_ms, logprobs, temperature"
    with database() as connection:
        connection.execute(f"COPY (SELECT * FROM (VALUES {values}) AS t({columns})) TO '{path}' (FORMAT parquet)")
    report = intake([path], create_store(tmp_path / "store"), form="parquet")
    assert report.rows == 3
    assert report.skipped == {NO_TIME: 3, NO_ACCOUNT: 2}
    assert report.repaired == {OUT_OF_RANGE: 2}
    store = open_store(tmp_path / "store")
    assert stored(store, "choices") == [-1, 3, 1000]
    assert stored(store, "latency_ms") == [-1, 7, 2**31 - 1]
    assert stored(store, "logprobs") == [-1, 0, 1]
    shares = [intake([path], create_store(tmp_path / f"{n}"), form="parquet", shard=(n, 2)) for n in range(2)]
    assert sum((share.skipped for share in shares), Counter()) == report.skipped


def test_logs_without_one_good_row_are_refused(tmp_path: Path) -> None:
    """Nothing is stored, and the message says why."""
    log = tmp_path / "log.jsonl"
    log.write_text("not a log\n")
    store = create_store(tmp_path / "store")
    with pytest.raises(UsageError, match="No row was understood"):
        intake([log], store)
    assert store.parts() == []
    with pytest.raises(UsageError, match="is not a file"):
        intake([tmp_path / "absent"], store)


@pytest.mark.parametrize("shards", [2, 5])
def test_merged_parts_equal_one_pass(tmp_path: Path, shards: int) -> None:
    """Shards of the same bytes, read apart and in another order, add up to the same tables to the bit."""
    log = write(tmp_path / "log.jsonl", [line(number) for number in range(400)])
    packed = tmp_path / "more.jsonl.gz"
    packed.write_bytes(
        gzip.compress(write(tmp_path / "more.jsonl", [line(number, account="z") for number in range(50)]).read_bytes())
    )
    whole = create_store(tmp_path / "whole")
    assert intake([log, packed], whole).rows == 450
    apart = [create_store(tmp_path / f"part{number}", tmp_path / "whole" / "secret.key") for number in range(2)]
    for shard in reversed(range(shards)):
        intake([log, packed], apart[shard % 2], shard=(shard, shards))
    merged = merge([apart[1]], apart[0])
    one = merge([], whole)
    assert merged["rows"] == one["rows"] == 450
    assert merged["tables"] == one["tables"]
    with pytest.raises(UsageError, match="another secret"):
        merge([create_store(tmp_path / "stranger")], whole)


def test_the_same_log_is_not_counted_twice(tmp_path: Path) -> None:
    """A second intake of the same bytes changes nothing."""
    log = write(tmp_path / "log.jsonl", [line(number) for number in range(20)])
    store = create_store(tmp_path / "store")
    assert not intake([log], store).known
    assert intake([log], store).known
    with database() as connection:
        found = load(store, connection, "SELECT sum(requests)::BIGINT AS n FROM {accounts}")
    assert found["n"].tolist() == [20]
    assert open_store(store.path).digest() == store.digest()


def counted(store: Store) -> int:
    """Requests that a store holds."""
    with database() as connection:
        found = load(store, connection, "SELECT sum(requests)::BIGINT AS n FROM {accounts}")
    return int(found["n"][0])


def test_a_log_is_counted_once_however_it_comes_again(tmp_path: Path) -> None:
    """Grown since, under another name, packed, beside new ones: what a daily `guard intake logs/*` meets."""
    rows = [line(number) for number in range(60)]
    log = write(tmp_path / "log.jsonl", rows[:20])
    log.write_bytes(log.read_bytes() + json.dumps(rows[20]).encode()[:30])  # still being written
    store = create_store(tmp_path / "store")
    assert intake([log], store).rows == 20
    write(log, rows[:40])
    grown = intake([log], store)
    assert (grown.rows, grown.already) == (20, 20)
    packed = tmp_path / "log.1.gz"
    packed.write_bytes(gzip.compress(log.read_bytes()))
    assert intake([packed], store, form="openai", keep_skeletons=True).known
    more = write(tmp_path / "more.jsonl", rows[40:])
    again = intake([log, more, packed, more], store)
    assert (again.rows, again.already) == (20, 100)
    assert counted(store) == 60
    # The last line may have no end, and get one.
    last = tmp_path / "last.jsonl"
    last.write_text(json.dumps(line(99)))
    assert intake([last], store).rows == 1
    last.write_text(json.dumps(line(99)) + "\r\n" + json.dumps(line(100)) + "\n")
    assert intake([last], store).rows == 1
    assert counted(store) == 62
    assert not list(store.path.glob("parts/*.partial"))


def access(number: int) -> str:
    """A line of an access log."""
    return (
        f"10.0.0.{number % 250} - bob{number} [01/Feb/2026:10:{number // 60 % 60:02d}:{number % 60:02d} +0000]"
        f' "POST /v1/chat HTTP/1.1" 200 123 "-" "agent/{number}"\n'
    )


def access_log(path: Path, first: int, last: int) -> Path:
    path.write_text("".join(map(access, range(first, last))))
    return path


def test_a_last_line_without_an_end_counts_once(tmp_path: Path) -> None:
    """Half a line of an access log is a line of its form: it waits, and that is said."""
    log, store = access_log(tmp_path / "a.log", 0, 5), create_store(tmp_path / "store")
    log.write_text(log.read_text()[:-12])
    first = intake([log], store)
    assert (first.rows, first.skipped) == (4, {})
    ((path, size),) = first.waiting
    assert (path, size) == (log, len(access(4)) - 12)
    again = intake([log], store)
    assert (again.known, again.waiting) == (True, first.waiting)
    shown = CliRunner().invoke(app, ["guard", "intake", str(log), "-o", str(store.path)], catch_exceptions=False).output
    assert f"the last line of {log}, which has no end ({size} bytes)" in shown
    access_log(log, 0, 6)
    grown = intake([log], store)
    assert (grown.rows, grown.already, grown.waiting) == (2, 4, [])
    assert counted(store) == 6
    one = tmp_path / "one.log"
    one.write_text(access(9).rstrip("\n"))
    with pytest.raises(UsageError, match=r"one\.log is one line without an end"):
        intake([one], store)
    # A whole object is read; what is written behind it does not make its log another one.
    rows = [json.dumps(line(number)) for number in range(4)]
    objects = tmp_path / "objects.jsonl"
    objects.write_text("\n".join(rows[:3]))
    assert intake([objects], store).rows == 3
    objects.write_text("\n".join(rows[:3]) + " cut off\n" + rows[3] + "\n")
    assert intake([objects], store).rows == 1
    assert counted(store) == 10


def test_lines_that_equal_earlier_ones_count(tmp_path: Path) -> None:
    log, store = tmp_path / "a.log", create_store(tmp_path / "store")
    for times in (3, 6, 9):
        log.write_text(access(1) * times)
        assert intake([log], store).rows == 3
        assert counted(store) == times
    assert intake([log], store).known
    # Shares of one log, too.
    log.write_text(access(2) * 6)
    divided = create_store(tmp_path / "divided")
    assert [intake([log], divided, shard=(number, 2)).rows for number in range(2)] == [3, 3]
    assert all(intake([log], divided, shard=(number, 2)).known for number in range(2))
    assert merge([], divided)["rows"] == 6


def test_shares_of_a_log_that_grew_are_refused(tmp_path: Path) -> None:
    """So are other numbers of shares, and the whole beside its shares; in one store, and when stores are merged."""
    log, store = access_log(tmp_path / "a.log", 0, 40), create_store(tmp_path / "store")
    assert sum(intake([log], store, shard=(number, 2)).rows for number in range(2)) == 40
    other = create_store(tmp_path / "other", store.path / "secret.key")
    whole = create_store(tmp_path / "whole", store.path / "secret.key")
    intake([log], whole)
    with pytest.raises(UsageError, match="was read in 2 shares"):
        intake([log], store)
    with pytest.raises(UsageError, match="was read in 2 shares"):
        intake([log], store, shard=(0, 3))
    with pytest.raises(UsageError, match="was read whole"):
        intake([log], whole, shard=(0, 2))
    with pytest.raises(UsageError, match="do not fit together"):
        merge([store], whole)
    access_log(log, 0, 60)
    for number in range(2):
        with pytest.raises(UsageError, match="was read in shares when it had"):
            intake([log], store, shard=(number, 2))
    intake([log], other, shard=(1, 2))
    with pytest.raises(UsageError, match="do not fit together"):
        merge([other], store)
    assert merge([], store)["rows"] == 40
    log.write_text(log.read_text()[:-5])
    with pytest.raises(UsageError, match="last line has no end"):
        intake([log], create_store(tmp_path / "new"), shard=(0, 2))


def test_two_forms_of_one_log_are_not_counted_together(tmp_path: Path) -> None:
    """A store that holds a grown form of another's log, and an older copy of a log that the store holds."""
    log = access_log(tmp_path / "a.log", 0, 40)
    one = create_store(tmp_path / "one")
    intake([log], one)
    shutil.copytree(one.path, tmp_path / "copy")
    copy, other = open_store(tmp_path / "copy"), create_store(tmp_path / "other", one.path / "secret.key")
    access_log(log, 0, 60)
    intake([log], other)
    for into, come in ((one, other), (other, one)):
        with pytest.raises(UsageError, match="hold the same beginning of one log"):
            merge([come], into)
    with pytest.raises(UsageError, match=r"a\.log begins as a log that the store holds"):
        intake([access_log(log, 0, 50)], other)
    # Where the log was read on from, nothing counts twice; nor do logs that only begin alike.
    access_log(log, 0, 60)
    assert intake([log], copy).rows == 20
    assert merge([copy], one)["rows"] == 60
    banner = "".join(f"INFO: starting, step {number}\n" for number in range(40))
    for number in range(2):
        log.write_text(banner + access(70 + number))
        assert intake([log], one).rows == 1
    assert counted(one) == 62


def test_parts_of_older_versions_are_read(tmp_path: Path) -> None:
    """Their records have digests of lines only: logs are known again, and may grow."""
    log, store = access_log(tmp_path / "a.log", 0, 40), create_store(tmp_path / "store")
    intake([log], store)
    (part,) = store.parts()
    record = json.loads((part / "part.json").read_text())
    record["read"] = [{name: entry[name] for name in ("lines", "sha256")} for entry in record["read"]]
    (part / "part.json").write_text(json.dumps(record))
    assert intake([log], store).known
    access_log(log, 0, 60)
    assert intake([log], store).rows == 20
    assert merge([], store)["rows"] == 60


def test_a_part_whose_merge_did_not_happen_is_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then nothing is read from the store: requests would be missing without a word."""
    store = create_store(tmp_path / "store")
    intake([access_log(tmp_path / "a.log", 0, 5)], store)
    later = access_log(tmp_path / "b.log", 5, 12)
    with monkeypatch.context() as patched:
        patched.setattr(reading, "merge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            intake([later], store)
    with pytest.raises(UsageError, match="1 of its 2 parts are not merged") as caught:
        counted(store)
    assert f"stillroom guard merge {store.path}" in str(caught.value)
    assert intake([later], store).known
    assert counted(store) == 12


def test_one_intake_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second says that it waits, and finds what the first has read; what a killed one left is removed."""
    log, store = access_log(tmp_path / "a.log", 0, 5), create_store(tmp_path / "store")
    left = store.path / "parts" / "reading-0123.partial"
    left.mkdir(parents=True)
    with ThreadPoolExecutor(1) as threads:
        with locked(store):
            second = threads.submit(intake, [log], store)
            with pytest.raises(TimeoutError):
                second.result(0.3)
            assert intake([log], store).rows == 5
        assert second.result(60).known
    assert "waiting for another intake or merge" in capsys.readouterr().err
    assert not left.exists()
    assert counted(store) == 5


def test_parquet_is_counted_once(tmp_path: Path) -> None:
    files = []
    for number in range(2):
        folder = tmp_path / str(number)
        write_month(make_month(100, number), folder)
        files.append(folder / "requests-0000.parquet")
    store = create_store(tmp_path / "store")
    first = intake(files[:1], store, form="parquet").rows
    assert intake(files[:1], store, form="parquet").known
    both = intake(files, store, form="parquet")
    assert both.already == first
    assert counted(store) == first + both.rows
    with pytest.raises(UsageError, match="--format parquet"):
        intake(files, store)


def test_stores_that_hold_one_log_in_other_company_are_not_merged(tmp_path: Path) -> None:
    logs = [write(tmp_path / f"{number}.jsonl", [line(number)]) for number in range(3)]
    one = create_store(tmp_path / "one")
    other = create_store(tmp_path / "other", one.path / "secret.key")
    intake(logs[:2], one)
    intake(logs[1:], other)
    with pytest.raises(UsageError, match="hold the same log"):
        merge([other], one)


def test_merged_parts_are_the_stores_own(tmp_path: Path) -> None:
    """As docs/guard-logs.md merges: a later intake adds to what was merged, and the digest says which parts they are."""
    logs = [write(tmp_path / f"{number}.jsonl", [line(number), line(number + 50)]) for number in range(4)]
    key = tmp_path / "secret.key"
    key.write_bytes(b"k" * 32)
    one, two, other = (create_store(tmp_path / f"store-{number}", key) for number in range(3))
    for store, log in zip((one, two, other), logs, strict=False):
        intake([log], store)
    # A copy of a store holds the same parts: they count once.
    shutil.copytree(one.path, tmp_path / "copy")
    into = create_store(tmp_path / "store", key)
    assert merge([one, two, open_store(tmp_path / "copy")], into)["rows"] == 4
    elsewhere = create_store(tmp_path / "elsewhere", key)
    merge([one, other], elsewhere)
    assert len({store.digest() for store in (one, into, elsewhere)}) == 3
    assert merge([one], into)["rows"] == 4
    # What was merged may go, and is known again.
    for store in (one, two):
        shutil.rmtree(store.path)
    assert intake(logs[:1], into).known
    assert intake(logs[3:], into).rows == 2
    assert counted(into) == 6
    whole = create_store(tmp_path / "whole", key)
    intake([logs[0], logs[1], logs[3]], whole)
    assert merge([], into)["tables"] == merge([], whole)["tables"]


def test_a_part_that_is_being_written_is_none_yet(tmp_path: Path) -> None:
    store = create_store(tmp_path / "store")
    intake([write(tmp_path / "log.jsonl", [line(1)])], store)
    (part,) = store.parts()
    shutil.copytree(part, part.with_name(f".{part.name}.1.partial"))
    assert store.parts() == [part]


def test_compressed_logs_are_known_by_their_content(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.gz", [line(1)])
    packed = tmp_path / "packed.jsonl"
    packed.write_bytes(gzip.compress(write(tmp_path / "x.jsonl", [line(2)]).read_bytes()))
    assert intake([plain, packed], create_store(tmp_path / "store")).rows == 2


def test_a_damaged_gzip_file_is_counted(tmp_path: Path) -> None:
    """Whatever is wrong with it: what comes before is read."""
    packed = gzip.compress(write(tmp_path / "x.jsonl", [line(number) for number in range(30)]).read_bytes())
    for name, data in (("cut", packed[:-8]), ("changed", packed + packed[:10] + b"\xff" * 20)):
        log = tmp_path / f"{name}.gz"
        log.write_bytes(data)
        report = intake([log], create_store(tmp_path / name))
        assert 0 < report.rows <= 30
        assert any("damaged gzip" in reason for reason in report.skipped), report.skipped


def test_too_little_memory_is_said(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", [line(number) for number in range(50)])
    with pytest.raises(OutOfMemory, match="1KB of memory do not suffice"):
        intake([log], create_store(tmp_path / "store"), memory="1KB")


def test_a_month_may_begin_in_its_middle_and_a_clock_may_jump(tmp_path: Path) -> None:
    """Logs from the 20th on; one row of a wrong clock is neither the month that is watched, nor a model's release."""
    rows = [line(number, time=f"2026-02-20 00:{number % 60:02d}:00 UTC") for number in range(120)]
    rows += [line(200, time="2098-05-05"), line(201, time="2001-01-01T00:00:00+09:00")]
    store = create_store(tmp_path / "store")
    report = intake([write(tmp_path / "log.jsonl", rows)], store)
    assert report.span == ("2000-12-31", "2098-05-05")
    assert months_of(store) == ["2000-12", "2026-02", "2098-05"]
    assert last_month(store) == "2026-02"
    data = load_month(store, "2026-02")
    assert data.released == {}
    (day,) = days_of(data)
    assert day.day == 19
    with pytest.raises(UsageError, match="has no requests"):
        last_month(_empty(tmp_path / "none"))


def _empty(path: Path) -> Store:
    """A store of a share in which no line begins."""
    log = write(path.with_suffix(".jsonl"), [line(1)])
    store = create_store(path)
    intake([log], store, shard=(1, 2))
    merge([], store)
    return store


def test_no_text_and_no_address_reaches_the_disk(tmp_path: Path) -> None:
    """A prompt's words, addresses and keys are in no file of the store."""
    log = write(
        tmp_path / "log.jsonl",
        [
            {
                "time": 1_790_000_000,
                "api_key": "sk-verysecret",
                "ip": "203.0.113.77",
                "request": {"messages": [{"role": "user", "content": "Xylophone elegy"}]},
            }
        ],
    )
    store = create_store(tmp_path / "store")
    intake([log], store)
    with database() as connection:
        for part in store.path.rglob("*.parquet"):
            shown = str(connection.execute(f"SELECT * FROM read_parquet('{part}')").fetchall()).lower()
            assert not any(word in shown for word in ("xylophone", "verysecret", "203.0.113"))


def test_networks() -> None:
    """Addresses become networks; anything else is none."""
    assert network("203.0.113.9") == "203.0.113"
    assert network("2001:db8:1:2::9") == "2001:db8:1::/48"
    assert network("nonsense") is None


def test_shown_names_are_harmless() -> None:
    """No control or formatting character is left, and the length is bounded."""
    assert "\x1b" not in printable("\x1b[2J\u202eevil")
    assert len(printable("a" * 999)) == 80
    assert np.char.str_len(printable("ok")) == 2
