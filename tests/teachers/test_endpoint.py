"""A teacher behind an endpoint: every fault of a server is named, nothing is paid twice, no key is anywhere."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import pickle
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model

from benchmarks.fake_endpoint import FAULTS, FakeServer, serving
from stillroom.core import files
from stillroom.core.errors import DiskFull, TeacherError, translate
from stillroom.core.progress import Progress
from stillroom.models.tokenizer import open_tokenizer
from stillroom.recipe.capture import ObservedCodec
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.signals.cache.observed import Observed
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import CoarseSignal
from stillroom.teachers.capture import cache_identity
from stillroom.teachers.endpoint.capture import Piece, capture_listed, known_teacher
from stillroom.teachers.endpoint.http import LONGEST_ASKED, Client, Refused, Slots
from stillroom.teachers.endpoint.ledger import CapReached, Ledger, Price
from stillroom.teachers.endpoint.probe import Fingerprint, difference, probe
from stillroom.teachers.endpoint.received import Received
from stillroom.teachers.endpoint.servers import LlamaCpp
from stillroom.teachers.endpoint.teacher import EndpointTeacher, open_endpoint

KEY = "sk-Stillroom-test-0123456789"
SIZE, TOP, PIECES = 512, 5, 6
PROBES = 2


class Clock:
    """Time that passes only when it is slept through."""

    def __init__(self) -> None:
        self.time, self.slept = 1000.0, []  # type: ignore[var-annotated]

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("endpoint") / "teacher", layers=1, hidden=16)


def config_of(fake: FakeServer, folder: Path, **values: Any) -> EndpointConfig:
    return EndpointConfig.model_validate(
        {
            "base_url": fake.address,
            "model": "served",
            "tokenizer": str(folder),
            "server": "vllm",
            "sends_text": True,
            "top": TOP,
            "concurrency": 1,
            "attempts": 2,
            "timeout_seconds": 0.4,
            "key_env": "STILLROOM_TEST_KEY",
        }
        | values
    )


def pieces(count: int = PIECES, length: int = 12) -> list[Piece]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for number in range(count):
        ids = torch.randint(SIZE, (length + number,), generator=generator).tolist()
        learned = torch.ones(len(ids) - 1, dtype=torch.bool)
        learned[:2] = False
        found.append(Piece(f"{number:064x}", ids, learned))
    return found


def captured(
    server: FakeServer, folder: Path, where: Path, texts: list[Piece] | None = None, **values: Any
) -> tuple[EndpointTeacher, TeacherCache]:
    """Probe and capture as the stage does it."""
    teacher = open_endpoint(config_of(server, folder, **values), where / "spending.jsonl", clock=Clock())
    cache = where / "cache"
    try:
        teacher = known_teacher(teacher, cache)
    except LookupError:
        teacher, _ = teacher.probed()
    assert teacher.fingerprint is not None
    identity = cache_identity(teacher, ObservedCodec(k=TOP), 1.0, 0)
    writer = CacheWriter.open(cache, identity)
    (cache / "fingerprint.json").write_text(json.dumps(teacher.fingerprint.as_dict()))
    codec = Observed(TOP, SIZE)
    received = Received(where / "received.bin", codec, "ab" * 32)
    said: list[str] = []
    try:
        with Progress(quiet=True).task("capture", 1) as task:
            capture_listed(teacher, texts or pieces(), writer, received, codec, 1 << 20, task, said.append)
    finally:
        teacher.close()
    return teacher, TeacherCache.open(cache)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLROOM_TEST_KEY", KEY)


def test_what_is_captured_is_what_the_server_says(folder: Path, tmp_path: Path) -> None:
    with serving(FakeServer(SIZE)) as server:
        _, cache = captured(server, folder, tmp_path, concurrency=4)
        table = torch.log_softmax(server.table, 1)
    for piece in pieces():
        signal = cache.read([piece.address])[0]
        assert isinstance(signal, CoarseSignal)
        exact = table[torch.tensor(piece.ids[:-1])][piece.learned]
        assert torch.allclose(signal.logprobs, exact.gather(1, signal.ids), atol=1e-3)
        assert torch.equal(signal.logprobs.argmax(1), torch.zeros(len(signal), dtype=torch.int64))
        assert torch.allclose(signal.rest, 1 - signal.logprobs.exp().sum(1), atol=1e-3)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named_and_nothing_is_lost(folder: Path, tmp_path: Path, fault: str, place: str) -> None:
    # Requests are: two of the probe, the pieces, and the fingerprint again.
    at = {"first": 0, "middle": PROBES + PIECES // 2, "last": PROBES + PIECES - 1}[place]
    with serving(FakeServer(SIZE, fault, at)) as server:
        if fault == "other model" and place == "first":
            # From the first request on it is simply the model. It is another one for a cache of the model before.
            server.fault = None
            captured(server, folder, tmp_path, pieces(2))
            server.fault, server.at = fault, server.asked
        before = server.asked
        with pytest.raises(TeacherError) as failed:
            captured(server, folder, tmp_path)
        assert FAULTS[fault] in failed.value.what, failed.value.what
        assert failed.value.todo
        assert KEY not in str(failed.value)
        assert KEY.encode() not in pickle.dumps(failed.value)
        # What was answered before is not asked for again, and in the end everything is there.
        server.fault = None
        answered = [tuple(ids) for ids in server.scored[PROBES:]] if before == 0 else []
        _, cache = captured(server, folder, tmp_path)
        assert set(cache.digests) == {piece.address for piece in pieces()}
        paid = [tuple(ids) for ids in server.scored if tuple(ids) in {tuple(piece.ids) for piece in pieces()}]
        if fault != "other model":
            assert len(paid) == len(set(paid)) == PIECES
            assert set(answered) <= set(paid)
    require_no_key(tmp_path)


def require_no_key(where: Path) -> None:
    for path in where.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert KEY.encode() not in data, path
            assert KEY[:16].encode() not in data, path


def test_the_key_goes_to_the_server_and_nowhere_else(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(FakeServer(SIZE)) as server:
        teacher, _ = captured(server, folder, tmp_path)
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        assert KEY not in repr(teacher)
        assert KEY not in json.dumps(teacher.record())
        monkeypatch.delenv("STILLROOM_TEST_KEY")
        with pytest.raises(TeacherError, match="STILLROOM_TEST_KEY"):
            captured(server, folder, tmp_path / "other")
    require_no_key(tmp_path)
    shown = capsys.readouterr()
    assert KEY not in shown.out + shown.err


@pytest.mark.parametrize("said", [f"id {KEY}", KEY], ids=["within", "alone"])
def test_a_server_that_says_the_key_itself_does_not_get_it_into_an_error(folder: Path, said: str) -> None:
    client = Client("http://127.0.0.1:1", "STILLROOM_TEST_KEY", Ledger(None, Price()))
    server = LlamaCpp(client, "m", open_tokenizer(folder), SIZE, 4)
    with pytest.raises(TeacherError, match=r"an id is .*\[key\]") as caught:
        server.entries([(said, -1.0)])
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__context__)
    assert KEY not in shown
    with pytest.raises(TeacherError, match=r"another model answers: .*\[key\]"):
        server.known_model = "m"
        server.require_model({"model": said})


def test_a_model_that_is_swapped_half_way_is_found_and_its_answers_are_thrown_away(
    folder: Path, tmp_path: Path
) -> None:
    with serving(FakeServer(SIZE, "other model", PROBES + 4)) as server:
        with pytest.raises(TeacherError, match="another model"):
            captured(server, folder, tmp_path, check_every=2)
        cache = TeacherCache.open(tmp_path / "cache")
        # Pieces 0 and 1 were confirmed before the swap, 2 and 3 were not; nothing of the other model is there.
        assert set(cache.digests) == {piece.address for piece in pieces()[:2]}
        assert not (tmp_path / "received.bin").exists()
        with pytest.raises(TeacherError, match="another model"):
            captured(server, folder, tmp_path)


def test_a_server_that_answers_a_little_differently_each_time_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    with serving(FakeServer(SIZE, noise=0.01)) as server:
        teacher, cache = captured(server, folder, tmp_path)
        assert teacher.fingerprint is not None
        assert 0 < teacher.fingerprint.noise < 0.05
        assert len(cache.digests) == PIECES
        again, _ = captured(server, folder, tmp_path)
        assert again.identity == teacher.identity


@pytest.mark.parametrize("cap_requests", [0.5, 3.5, 100])
def test_the_cap_is_never_passed(folder: Path, tmp_path: Path, cap_requests: float) -> None:
    price = {"input": 1e6, "output": 1e6, "cap": 64 * 2 + cap_requests * 20}
    with serving(FakeServer(SIZE)) as server:
        spent = []
        for _ in range(3):
            with contextlib.suppress(CapReached):
                captured(server, folder, tmp_path, price=price, concurrency=3)
            spent.append(Ledger(tmp_path / "spending.jsonl", Price(1e6, 1e6)).spent)
        used = sum(len(body["prompt"]) + 1 for body in server.bodies)
        if cap_requests < 4:
            with pytest.raises(CapReached, match=r"spend cap .*was not sent"):
                captured(server, folder, tmp_path, price=price)
    assert spent[-1] == pytest.approx(used)
    assert spent[-1] <= price["cap"]
    assert spent == sorted(spent)


def _capture_in_a_child(address: str, folder: str, where: str) -> None:
    os.environ["STILLROOM_TEST_KEY"] = KEY
    server: Any = type("Server", (), {"address": address})()
    captured(server, Path(folder), Path(where), pieces(30), check_every=5, timeout_seconds=30)


def test_killed_at_any_moment_nothing_received_is_paid_for_twice(folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "transformers.models.auto.tokenization_auto"])
    texts = {tuple(piece.ids): piece.address for piece in pieces(30)}
    with serving(FakeServer(SIZE, pause=0.005)) as server:
        kills = 0
        for trial in range(3):
            child = context.Process(target=_capture_in_a_child, args=(server.address, str(folder), str(tmp_path)))
            child.start()
            wanted = 4 + 9 * trial
            until = time.monotonic() + 60
            while len(server.scored) < wanted and child.is_alive() and time.monotonic() < until:
                time.sleep(0.002)
            if child.is_alive():
                child.kill()
                kills += 1
            child.join()
        kept = set(TeacherCache.open(tmp_path / "cache").digests)
        kept |= set(Received(tmp_path / "received.bin", Observed(TOP, SIZE), "ab" * 32).read())
        done = len(server.scored)
        _, cache = captured(server, folder, tmp_path, pieces(30))
        later = [texts[tuple(ids)] for ids in server.scored[done:] if tuple(ids) in texts]
    assert kills == 3
    assert set(cache.digests) == set(texts.values())
    # What was there after the kills is not asked for again; an answer that was on its way at a kill may be.
    assert not kept & set(later)
    assert len(later) == len(set(later)) == 30 - len(kept)
    counts: dict[str, int] = {}
    for ids in server.scored:
        if tuple(ids) in texts:
            counts[texts[tuple(ids)]] = counts.get(texts[tuple(ids)], 0) + 1
    assert sum(counts.values()) - 30 <= kills
    # What was sent and never ended counts as spent.
    totals = Ledger(tmp_path / "spending.jsonl", Price()).totals
    assert totals.tokens_in >= sum(len(ids) for ids in server.scored) - 64
    for piece in pieces(30):
        signal = cache.read([piece.address])[0]
        exact = torch.log_softmax(server.table, 1)[torch.tensor(piece.ids[:-1])][piece.learned]
        assert torch.allclose(signal.logprobs, exact.gather(1, signal.ids), atol=1e-3)


class Script:
    """A transport that answers from a list."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        import httpx2

        self.asked = 0

        def answer(_: Any) -> Any:
            status, headers, data = answers[min(self.asked, len(answers) - 1)]
            self.asked += 1
            return httpx2.Response(status, headers=headers, content=data)

        self.transport = httpx2.MockTransport(answer)


def client_of(script: Script, clock: Clock, **values: Any) -> Client:
    return Client(
        "http://127.0.0.1:1",
        None,
        Ledger(None, Price()),
        clock=clock,
        transport=script.transport,
        jitter=lambda: 1.0,
        **values,
    )


GOOD = (200, {}, b"{}")


@pytest.mark.parametrize(
    ("headers", "waits"),
    [
        ({}, 0.5),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After-Ms": "250"}, 0.25),
        ({"Retry-After": "Thu, 01 Jan 1970 00:17:00 GMT"}, 20.0),
        ({"Retry-After": "soon"}, 0.5),
        ({"Retry-After": "-3"}, 0.0),
    ],
)
def test_retry_after_is_obeyed(headers: dict[str, str], waits: float) -> None:
    clock, script = Clock(), Script((429, headers, b"{}"), GOOD)
    client = client_of(script, clock)
    assert client.post("/x", {}, 1, 1, "x") == {}
    assert clock.slept == [pytest.approx(waits)]
    assert client.slots.limit == pytest.approx(4.0 + 1 / 4)
    # Nothing was charged for the refusal.
    assert client.ledger.totals.tokens_in == 1


def test_what_is_not_waited_for(folder: Path) -> None:
    clock = Clock()
    with pytest.raises(TeacherError, match="pause of 3,600 seconds"):
        client_of(Script((429, {"Retry-After": "3600"}, b"")), clock).post("/x", {}, 1, 1, "x")
    assert LONGEST_ASKED < 3600
    for status in (400, 401, 403, 404, 422):
        script = Script((status, {}, b"no"))
        with pytest.raises(Refused, match=f"status {status}"):
            client_of(script, clock).post("/x", {}, 1, 1, "x")
        assert script.asked == 1
    assert clock.slept == []
    script = Script((503, {}, b""))
    with pytest.raises(TeacherError, match="4 times in a row"):
        client_of(script, clock, attempts=4).post("/x", {}, 1, 1, "x")
    assert script.asked == 4
    assert clock.slept == [0.5, 1.0, 2.0]


def test_a_full_disk_between_a_requests_two_lines_loses_neither_the_answer_nor_the_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, price = tmp_path / "spending.jsonl", Price(1e6, 1e6)
    answer = json.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 1}}).encode()
    script = Script((200, {}, answer))
    client = replace(client_of(script, Clock()), ledger=Ledger(path, price))
    append, full = files.append, False

    def appended(file: Path, data: bytes) -> None:
        if full and data.startswith(b'{"request": 0, "state": "ended"'):
            raise OSError(errno.ENOSPC, "No space left on device", str(file))
        append(file, data)

    monkeypatch.setattr(files, "append", appended)
    full = True
    assert client.post("/x", {}, 10, 10, "x") == json.loads(answer)
    assert script.asked == 1
    # It counts by what it took here, and at its worst case after a kill.
    assert client.ledger.spent == 4
    assert Ledger(path, price).spent == 20
    # Nothing more is sent, and who asked is told.
    for ask in (client.ledger.settle, lambda: client.post("/x", {}, 10, 10, "x")):
        with pytest.raises(OSError, match="No space left") as raised:
            ask()
        assert isinstance(translate(raised.value), DiskFull)
    assert script.asked == 1
    assert client.ledger.spent == 4
    full = False
    client.ledger.settle()
    assert Ledger(path, price).spent == client.ledger.spent == 4
    client.post("/x", {}, 10, 10, "x")
    assert Ledger(path, price).spent == client.ledger.spent == 8


def test_an_answer_whose_model_failed_is_asked_for_again() -> None:
    failed = (200, {}, b'{"choices": [{"message": {"content": "Half a"}, "finish_reason": "error"}]}')
    good = (200, {}, b'{"choices": [{"message": {"content": "A whole text."}, "finish_reason": "stop"}]}')
    client = client_of(Script(failed, good), Clock())
    assert client.post("/x", {}, 10, 3, "x")["choices"][0]["finish_reason"] == "stop"
    # Both may have been charged.
    assert (client.ledger.totals.requests, client.ledger.totals.tokens_in) == (2, 20)
    with pytest.raises(TeacherError, match=r"the model failed behind the server \(`finish_reason: error`\), 3 times"):
        client_of(Script(failed), Clock(), attempts=3).post("/x", {}, 10, 3, "x")


def test_an_answer_of_unknown_outcome_counts_as_spent() -> None:
    client = client_of(Script((500, {}, b""), GOOD), Clock())
    client.post("/x", {}, 10, 3, "x")
    assert client.ledger.totals.tokens_in == 20
    assert client.ledger.totals.unknown == 1


@pytest.mark.parametrize("said", [10**9, 10**400])
def test_usage_that_cannot_be_is_booked_as_what_was_reserved(
    tmp_path: Path, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, price = tmp_path / "spending.jsonl", Price(0.2, 0.6, 5.0)
    answer = json.dumps({"usage": {"prompt_tokens": said, "completion_tokens": said}}).encode()
    client = replace(client_of(Script((200, {}, answer)), Clock()), ledger=Ledger(path, price))
    for _ in range(3):
        client.post("/x", {}, 100, 1, "x")
    assert client.ledger.spent == pytest.approx(3 * price.of(100, 1))
    assert len(caplog.records) == 1
    assert "more tokens" in caplog.text
    assert Ledger(path, price).spent == pytest.approx(client.ledger.spent)
    # A few more than were sent are the server's own, such as the one that begins a text.
    number = client.ledger.reserve(100, 1, "x")
    client.ledger.book(number, "200", 101, 1)
    assert client.ledger.totals.tokens_in == 401


@pytest.mark.parametrize("said", [str(10**400), "1e999"])
def test_lines_of_the_ledger_that_cannot_be(tmp_path: Path, said: str) -> None:
    path, price = tmp_path / "spending.jsonl", Price(0.2, 0.6, 5.0)
    sent = '{"request": 0, "state": "sent", "in": 100, "out": 1, "what": "x"}\n'
    # Written by an earlier version, which believed the server.
    path.write_text(sent + f'{{"request": 0, "state": "ended", "in": {10**400}, "out": 1, "status": "200"}}\n')
    assert Ledger(path, price).spent == pytest.approx(price.of(100, 1))
    path.write_text(sent + sent.replace('"in": 100', f'"in": {said}'))
    with pytest.raises(TeacherError, match="line 2: a request cannot have had"):
        Ledger(path, price)


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 16))
def test_concurrency_stays_between_one_and_the_recipes(outcomes: list[bool], most: int) -> None:
    slots = Slots(most)
    for went_well in outcomes:
        slots.went_well() if went_well else slots.too_much()
        assert 1 <= slots.limit <= most


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.sampled_from(("200", "unknown", "lost"))), max_size=12
    )
)
def test_the_ledger_of_a_killed_process_is_the_ledger(entries: list[tuple[int, int, str]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "spending.jsonl"
        first = Ledger(path, Price(1e6, 2e6))
        for tokens_in, tokens_out, outcome in entries:
            number = first.reserve(tokens_in, tokens_out, "x")
            if outcome == "200":
                first.book(number, "200", tokens_in, tokens_out)
            elif outcome == "unknown":
                first.fail(number)
        if path.is_file():
            with path.open("ab") as file:
                file.write(b'{"request": 99, "sta')
        again = Ledger(path, Price(1e6, 2e6))
        assert again.spent == pytest.approx(first.spent)
        assert again.totals.requests == len(entries)
        again.reserve(1, 1, "next")
        assert Ledger(path, Price(1e6, 2e6)).spent == pytest.approx(first.spent + 3)


def test_a_file_of_answers_that_a_kill_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    codec = Observed(2, SIZE)
    received = Received(tmp_path / "received.bin", codec, "ab" * 32)
    signal = codec.observe(
        CoarseSignal(torch.tensor([[3, 4]]), torch.tensor([[0.5, 0.25]]).log(), torch.tensor([0.25]))
    )
    for number in range(3):
        received.add(f"{number:064x}", signal)
    whole = (tmp_path / "received.bin").read_bytes()
    for cut in (1, 9, len(whole) // 3 - 1):
        (tmp_path / "received.bin").write_bytes(whole[:-cut])
        assert len(received.read()) == 2
        received.add(f"{9:064x}", signal)
        assert len(received.read()) == 3
    assert Received(tmp_path / "received.bin", codec, "cd" * 32).read() == {}


def test_answers_of_other_settings_and_other_names_are_kept_until_they_are_asked_for(tmp_path: Path) -> None:
    path, earlier = tmp_path / "received.bin", tmp_path / "received-far.bin"
    three, two = Observed(3, SIZE), Observed(2, SIZE)
    signal = CoarseSignal(torch.tensor([[3, 4, 5]]), torch.tensor([[0.5, 0.25, 0.125]]).log(), torch.tensor([0.125]))
    first, second = Received(path, three, "ab" * 32), Received(path, two, "cd" * 32)
    first.add(f"{1:064x}", three.observe(signal))
    second.add(f"{2:064x}", two.observe(signal))
    # What is in a cache now is of the second alone.
    second.clear()
    assert second.read() == {}
    assert list(first.read()) == [f"{1:064x}"]
    first.clear()
    assert not path.exists()
    # A teacher that is called otherwise now takes what is its own.
    for digest, codec in (("ab", three), ("cd", two)):
        Received(earlier, codec, digest * 32).add(f"{3:064x}", codec.observe(signal))
    first.take_over(earlier)
    assert list(first.read()) == [f"{3:064x}"]
    assert second.read() == Received(earlier, three, "ab" * 32).read() == {}
    second.take_over(earlier)
    assert list(second.read()) == [f"{3:064x}"]
    assert not earlier.exists()
    first.take_over(earlier)


@pytest.mark.parametrize("where", ["noise", "logprobs"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_fingerprint_that_any_model_would_pass_is_none(where: str, value: float) -> None:
    kept = {"format": 1, "model": "m", "text": [1, 2], "ids": [[3]], "logprobs": [[-0.5]], "noise": 0.01}
    assert Fingerprint.from_dict(kept) is not None
    assert Fingerprint.from_dict(kept | {where: value if where == "noise" else [[value]]}) is None


def test_a_difference_is_never_less_than_a_limit_by_not_being_a_number() -> None:
    ids = torch.tensor([[1, 2]])
    unlikely = CoarseSignal(ids, torch.full((1, 2), -1e30), torch.ones(1))
    none = CoarseSignal(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2), torch.zeros(0))
    assert difference(unlikely, unlikely) == difference(none, none) == float("inf")


def test_a_probe_tells_what_it_found(folder: Path) -> None:
    with serving(FakeServer(SIZE)) as server:
        teacher = open_endpoint(config_of(server, folder, server="auto"), clock=Clock())
        assert teacher.server.kind == "vllm"
        found = probe(teacher.server)
        assert found.deterministic
        assert found.top == TOP
        assert not found.tokenizer_checked
        assert 0 < found.missing_mass < 1
        assert found.server == {"version": "0.0-fake"}
        again = Fingerprint.from_dict(json.loads(json.dumps(found.fingerprint.as_dict())))
        assert again == found.fingerprint
        assert Fingerprint.from_dict({"format": 1}) is None
        assert Fingerprint.from_dict(None) is None
        teacher.close()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sends_text": False}, "sends_text: true"),
        ({"base_url": "http://user:secret@127.0.0.1"}, "without user, key"),
        ({"base_url": "http://127.0.0.1/?key=secret"}, "without user, key"),
        ({"base_url": "ftp://127.0.0.1"}, "not an address"),
        ({"base_url": "https://api.example.com"}, "service"),
        ({"base_url": "http://api.example.com", "service": "Example"}, "https"),
        ({"price": {"cap": 1.0}}, "cap needs a price"),
    ],
)
def test_recipes_that_are_refused(values: dict[str, Any], words: str) -> None:
    from pydantic import ValidationError

    whole = {"base_url": "http://127.0.0.1:1", "model": "m", "tokenizer": "t", "sends_text": True, "key_env": "K"}
    with pytest.raises(ValidationError, match=words) as failed:
        EndpointConfig.model_validate(whole | values)
    if "secret" in str(values):
        # The key must not come back in the message that people paste into an issue.
        from stillroom.core.errors import RecipeError
        from stillroom.recipe.reading import recipe_of

        with pytest.raises(RecipeError) as explained:
            recipe_of({"name": "x", "corpus": {"sources": []}, "teacher": whole | values | {"kind": "endpoint"}})
        assert "secret" not in str(explained.value)
    assert failed.value.error_count() >= 1


def test_a_server_with_a_limit_says_so(folder: Path) -> None:
    with serving(FakeServer(SIZE)) as server:
        for kind, most in (("together", 20), ("fireworks", 5)):
            with pytest.raises(TeacherError, match=f"at most {most} ids"):
                open_endpoint(config_of(server, folder, server=kind, top=most + 1))
        for kind in ("chat", "mistral"):
            with pytest.raises(TeacherError, match="no signal to capture"):
                open_endpoint(config_of(server, folder, server=kind))
        teacher = open_endpoint(config_of(server, folder))
        with pytest.raises(TeacherError, match="no whole distributions"):
            teacher.score(None, [0])  # type: ignore[arg-type]
        with pytest.raises(TeacherError, match="not probed"):
            _ = replace(teacher, fingerprint=None).identity
        teacher.close()
