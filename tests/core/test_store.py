"""Bytes at a path or a URL: exclusive puts, ranges, listings, failures in the middle; no credentials in a recipe."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.s3_server import S3Server, s3_server
from stillroom.core import store as stores
from stillroom.core import store_clients
from stillroom.core.errors import EnvironmentProblem, RecipeError, UsageError
from stillroom.core.store import LocalStore, Store, check_url, open_store
from stillroom.recipe.capture import CaptureConfig
from stillroom.recipe.reading import recipe_of


@pytest.fixture(scope="module")
def server():
    with s3_server() as found:
        yield found


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "local":
        return open_store(tmp_path / "store")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.objects.clear()
    return open_store("s3://bucket/deep/cache")


def test_what_is_put_is_there_whole_and_in_ranges(store: Store) -> None:
    data = os.urandom(10_000)
    assert store.get("a/b") is None
    assert store.size("a/b") is None
    store.put("a/b", data)
    assert store.get("a/b") == data
    assert store.size("a/b") == len(data)
    for start, end in ((0, 8), (5, 5), (9_990, 10_000), (17, 4_711)):
        assert store.get_range("a/b", start, end) == data[start:end]
    with pytest.raises(FileNotFoundError):
        store.get_range("a/c", 0, 3)
    store.put("a/b", b"new")
    assert store.get("a/b") == b"new"
    store.remove("a/b")
    store.remove("a/b")
    assert store.get("a/b") is None


@pytest.mark.parametrize("size", [0, 1, 9_999, 2_500_000])
def test_a_file_is_put_in_parts_and_read_again(
    store: Store, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What object stores take is 5 MB at least; this one takes any.
    monkeypatch.setattr(stores, "PART_BYTES", 300_000)
    monkeypatch.setattr(stores, "MOST_PARTS", 5)
    data = os.urandom(size)
    (tmp_path / "sent").write_bytes(data)
    store.put("files/a", b"before")
    store.put_file("files/a", tmp_path / "sent")
    assert store.size("files/a") == size
    stores.read_file(store, "files/a", tmp_path / "read", size)
    assert (tmp_path / "read").read_bytes() == data
    if size:
        with pytest.raises(FileNotFoundError):
            stores.read_file(store, "files/b", tmp_path / "read", size)


def test_a_key_is_put_once_whoever_tries(store: Store) -> None:
    firsts: list[tuple[int, int]] = []

    def work(who: int) -> None:
        for number in range(25):
            if store.put_new(f"parts/{number}", f"{who}".encode() * 1000):
                firsts.append((number, who))

    threads = [threading.Thread(target=work, args=(who,)) for who in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in firsts) == list(range(25))
    assert all(store.get(f"parts/{number}") == f"{who}".encode() * 1000 for number, who in firsts)


def test_more_than_a_page_is_listed_and_nothing_of_other_folders(store: Store) -> None:
    for number in range(1_010 if not isinstance(store, LocalStore) else 30):
        store.put_new(f"parts/{number:05}.json", b"x")
    store.put("partsother", b"x")
    found = store.names("parts/")
    assert found == [f"parts/{number:05}.json" for number in range(len(found))]
    assert len(found) in (30, 1_010)


def test_a_store_that_is_busy_or_cuts_the_connection_is_asked_again(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://bucket/busy")
    server.busy = 2
    assert store.put_new("a", b"1")
    server.cut = 1
    assert store.get("a") == b"1"
    assert not store.put_new("a", b"2")


@pytest.fixture
def slow(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A line of 200 kB/s, and a limit of 0.5 seconds for a request and its silence instead of 30."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(store_clients, "SILENCE", 0.5)
    monkeypatch.setattr(store_clients, "SLOWEST", 100_000)
    server.objects.clear()
    server.rate = 200_000
    yield server
    server.rate = server.stall_seconds = 0.0


DATA = os.urandom(1 << 18)
"""1.3 seconds on the slow line."""


def test_an_object_that_takes_longer_than_the_limit_of_a_request_is_put_and_read(slow: S3Server) -> None:
    import obstore
    from obstore.exceptions import GenericError
    from obstore.store import from_url

    # What the line is like for a client with the limit alone.
    client = from_url(
        "s3://bucket/slow",
        client_options={"timeout": "500ms", "allow_http": True},
        retry_config={"max_retries": 0},
    )
    with pytest.raises(GenericError):
        obstore.put(client, "limited", DATA, mode="create", use_multipart=False)
    store = open_store("s3://bucket/slow")
    begun = time.monotonic()
    assert store.put_new("a", DATA)
    assert time.monotonic() - begun > 2 * store_clients.SILENCE
    store.put("b", DATA)
    assert slow.objects["bucket/slow/a"] == slow.objects["bucket/slow/b"] == DATA
    assert store.get("a") == DATA
    assert store.get_range("a", 5, len(DATA) - 7) == DATA[5:-7]


def test_a_read_that_falls_silent_is_tried_again(slow: S3Server) -> None:
    slow.objects["bucket/slow/a"] = DATA
    slow.stall_seconds = 3.0
    begun = time.monotonic()
    assert open_store("s3://bucket/slow").get("a") == DATA
    assert slow.stall_seconds == 0
    assert time.monotonic() - begun < 3.0


def test_a_put_has_the_time_that_its_size_takes_on_a_slow_line() -> None:
    assert store_clients.seconds_to_send(0) < 31
    assert store_clients.seconds_to_send(10**9) > 10**9 / 5e6
    assert all(
        store_clients.seconds_to_send(size) >= size / store_clients.SLOWEST for size in (1, 4_711, 10**7, 5 * 10**9)
    )
    assert len({store_clients.seconds_to_send(size) for size in range(0, 5 * 10**9, 10**6)}) < 20


def test_options_of_the_environment_hold_beside_the_limits(slow: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "500ms")
    monkeypatch.setenv("AWS_USER_AGENT", "of-my-own")
    clients = store_clients.Clients("s3://bucket/slow")
    assert clients.writing(10**9).client_options == {
        "timeout": "500ms",
        "allow_http": "true",
        "user_agent": "of-my-own",
    }
    with pytest.raises(EnvironmentProblem, match="did not answer"):
        open_store("s3://bucket/slow").put_new("a", DATA)


def test_a_file_system_without_links_is_exclusive_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(stores.os, "link", refuse)
    store = LocalStore(tmp_path)
    assert store.put_new("a", b"1")
    assert not store.put_new("a", b"2")
    assert store.get("a") == b"1"
    assert store.names("") == ["a"], "the lock is no object"
    assert not list(tmp_path.glob("*.partial"))


def test_what_another_process_cleared_is_put_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, cleared = os.link, []

    def clearing(source: Path, target: Path) -> None:
        if not cleared:
            cleared.append(source)
            Path(source).unlink()
        real(source, target)

    monkeypatch.setattr(stores.os, "link", clearing)
    assert LocalStore(tmp_path).put_new("a", b"1")
    assert cleared
    assert (tmp_path / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://AKIA:hunter2@bucket/x", "carries credentials"),
        ("s3://bucket/x?secret_access_key=hunter2", "carries credentials"),
        ("ftp://bucket/x", "not an object store"),
        ("s3:///x", "not a bucket"),
    ],
)
def test_a_url_that_cannot_be_taken_is_refused_and_its_secret_not_shown(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        check_url(url)
    assert "hunter2" not in str(caught.value)
    recipe = {"name": "x", "corpus": {"sources": []}, "capture": {"path": url}}
    with pytest.raises(RecipeError, match=words) as refused:
        recipe_of(recipe)
    assert "hunter2" not in str(refused.value) + str(vars(refused.value))


def test_a_recipe_takes_a_path_or_a_url() -> None:
    assert CaptureConfig(path="s3://bucket/x").path == "s3://bucket/x"
    assert CaptureConfig(path="x/y").path == Path("x/y")


def test_a_store_without_credentials_says_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    with pytest.raises(EnvironmentProblem, match="AWS_SECRET_ACCESS_KEY"):
        open_store("s3://bucket/x").get("a")


def test_a_failure_names_no_signature_of_a_request() -> None:
    words = "Generic error: Error performing PUT https://a.blob.example/c/k?sv=1&sig=hunter2 in 3s, after 10 retries"
    found = stores._failed("az://c/k", RuntimeError(words))
    assert "hunter2" not in found.what
    assert "https://a.blob.example/c/k?… in 3s, after 10 retries" in found.what
