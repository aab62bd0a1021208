"""Sessions: kept, sealed, restored, renamed, exported, deleted; and what happens when the context is full."""

from __future__ import annotations

import asyncio
import shutil
import stat
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from serve_support import Running, running

from attacks.switch._damage import put
from stillroom.runtime import transport as local
from stillroom.serving.pool import SOMEBODY, Slot, restore_slot, save_slot
from stillroom.serving.sessions import NoSession, Session, SessionDamaged, SessionStore


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "sessions", keyring=False)


def test_nothing_of_a_session_lies_open(store: SessionStore) -> None:
    session = store.create("holiday plans", "model", "digest", "You are kind.")
    session.messages.append({"role": "user", "content": "the secret word is marmalade"})
    store.save(session)
    store.save_state(session, b"marmalade" * 100)
    for path in store.folder.iterdir():
        data = path.read_bytes()
        assert b"marmalade" not in data
        assert b"holiday" not in data
    assert stat.S_IMODE((store.folder / "key").stat().st_mode) == 0o600
    again = SessionStore(store.folder, keyring=False)
    assert again.load(session.id) == session
    assert again.load_state(session, "digest") == b"marmalade" * 100
    assert again.load_state(session, "another model") is None


def test_a_changed_or_exchanged_session_is_refused(store: SessionStore) -> None:
    first, second = (store.create(name, "model", "digest") for name in ("a", "b"))
    one, two = (store.folder / f"{session.id}.session" for session in (first, second))
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    with pytest.raises(SessionDamaged):
        store.load(first.id)  # sealed for another number
    for position in range(0, len(kept), 7):
        damaged = bytearray(kept)
        damaged[position] ^= 1
        one.write_bytes(bytes(damaged))
        with pytest.raises(SessionDamaged):
            store.load(first.id)
    assert [entry.get("damaged", False) for entry in store.list()].count(True) == 1


@pytest.mark.parametrize("what", ["pipe", "folder", "link_to_itself", "endless_device", "later_version"])
def test_whatever_stands_for_a_session_holds_nothing_up(store: SessionStore, what: str) -> None:
    good, bad = store.create("good", "model", "digest"), store.create("bad", "model", "digest")
    path = store.folder / f"{bad.id}.session"
    path.unlink()
    if what == "later_version":
        store._seal(path, bad.id, b'{"id": "x", "more": 1}')
    else:
        put(path, what)
    assert {entry["name"] for entry in store.list()} == {"good", "(damaged)"}
    assert [entry["name"] for entry in store.list("another key")] == []
    with pytest.raises(SessionDamaged):
        store.load(bad.id)
    assert not store.append(bad, [], 0)
    assert store.load(good.id).name == "good"
    key = store.folder / "key"
    key.unlink()
    put(key, "pipe")
    with pytest.raises(SessionDamaged, match="not a file"):
        SessionStore(store.folder, keyring=False).create("new", "model", "digest")
    assert store.purge() >= 1


def test_without_the_key_nothing_is_read(store: SessionStore) -> None:
    session = store.create("a", "model", "digest")
    store.save_state(session, b"state")
    kept = {path.name: path.read_bytes() for path in store.folder.iterdir() if path.name != "key"}
    assert store.purge() == 2
    assert not list(store.folder.iterdir())
    for name, data in kept.items():  # somebody had a copy
        (store.folder / name).write_bytes(data)
    with pytest.raises(SessionDamaged):
        SessionStore(store.folder, keyring=False).load(session.id)


class Keyring:
    """A keyring in memory; what a desktop's own does for us."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}
        self.locked = False

    def get_password(self, service: str, user: str) -> str | None:
        self._require_open()
        return self.kept.get((service, user))

    def set_password(self, service: str, user: str, password: str) -> None:
        self._require_open()
        self.kept[service, user] = password

    def delete_password(self, service: str, user: str) -> None:
        self._require_open()
        del self.kept[service, user]

    def _require_open(self) -> None:
        if self.locked:
            raise RuntimeError("the keyring is locked")


@pytest.fixture
def keyring(monkeypatch: pytest.MonkeyPatch) -> Keyring:
    """A keyring of the user, whether or not the package is installed here."""
    chosen = Keyring()
    names = ("keyring", "keyring.backends", "keyring.backends.fail", "keyring.backends.null")
    package, backends, fail, null = (ModuleType(name) for name in names)
    vars(package).update(get_keyring=lambda: chosen, backends=backends)
    vars(backends).update(fail=fail, null=null)
    for module in (fail, null):
        vars(module).update(Keyring=type("Keyring", (), {}))
    for name, module in zip(names, (package, backends, fail, null), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    return chosen


def test_the_key_is_in_the_keyring_where_there_is_one(tmp_path: Path, keyring: Keyring) -> None:
    store = SessionStore(tmp_path / "sessions")
    session = store.create("a", "model", "digest")
    store.save_state(session, b"state")
    assert not (store.folder / "key").exists()
    ((service, _), key), *others = keyring.kept.items()
    assert service == "stillroom-sessions"
    assert not others
    assert len(bytes.fromhex(key)) == 32
    for path in store.folder.iterdir():
        assert bytes.fromhex(key) not in path.read_bytes()
    again = SessionStore(store.folder)
    assert again.load(session.id) == session
    assert again.load_state(session, "digest") == b"state"
    # Another folder of sessions has a key of its own.
    other = SessionStore(tmp_path / "other")
    other.create("b", "model", "digest")
    assert len(set(keyring.kept.values())) == 2
    # Purging takes the key out of the keyring, and copies of the files are worth nothing.
    kept = {path.name: path.read_bytes() for path in store.folder.iterdir()}
    assert store.purge() == 2
    assert len(keyring.kept) == 1
    for name, data in kept.items():
        (store.folder / name).write_bytes(data)
    with pytest.raises(SessionDamaged):
        SessionStore(store.folder).load(session.id)


def test_a_locked_keyring_leaves_the_key_to_a_file(tmp_path: Path, keyring: Keyring) -> None:
    keyring.locked = True
    store = SessionStore(tmp_path / "sessions")
    session = store.create("a", "model", "digest")
    assert stat.S_IMODE((store.folder / "key").stat().st_mode) == 0o600
    # Once it is open again the file's key still opens what was sealed under it, and no second key is made.
    keyring.locked = False
    assert SessionStore(store.folder).load(session.id) == session
    assert not keyring.kept


def test_a_keyring_that_was_locked_for_a_while_loses_nothing(tmp_path: Path, keyring: Keyring) -> None:
    before = SessionStore(tmp_path / "sessions").create("before", "model", "digest")
    keyring.locked = True
    locked = SessionStore(tmp_path / "sessions")
    meanwhile = locked.create("meanwhile", "model", "digest")
    with pytest.raises(SessionDamaged):
        locked.load(before.id)
    keyring.locked = False
    store = SessionStore(tmp_path / "sessions")
    assert store.load(before.id) == before
    assert store.load(meanwhile.id) == meanwhile
    assert store.purge() == 2
    assert not keyring.kept
    assert not list(store.folder.iterdir())


def test_a_keyring_that_is_none_is_not_used(tmp_path: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    none = sys.modules["keyring.backends.fail"].Keyring()
    monkeypatch.setattr(sys.modules["keyring"], "get_keyring", lambda: none)
    store = SessionStore(tmp_path / "sessions")
    store.create("a", "model", "digest")
    assert (store.folder / "key").is_file()
    assert not keyring.kept


def test_a_key_that_was_changed_in_the_keyring_is_not_replaced(tmp_path: Path, keyring: Keyring) -> None:
    store = SessionStore(tmp_path / "sessions")
    session = store.create("a", "model", "digest")
    name = next(iter(keyring.kept))
    keyring.kept[name] = "no hex digits"
    with pytest.raises(SessionDamaged):
        SessionStore(store.folder).load(session.id)
    assert keyring.kept[name] == "no hex digits"


@pytest.mark.parametrize("number", ["", "../../../etc/passwd", "0" * 31, "G" * 32, "0" * 32])
def test_a_number_leads_nowhere_else(store: SessionStore, number: str) -> None:
    with pytest.raises(NoSession):
        store.load(number)


def ask(made: Running, session: str, text: str, **options: Any) -> Any:
    body = {"messages": [{"role": "user", "content": text}], "session": session, "max_tokens": 6, "temperature": 0}
    status, answer, _ = made.ask("POST", "/v1/chat/completions", {**body, **options})
    assert status == 200, answer
    return answer


def test_a_session_goes_on_after_a_restart_without_reading_again(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path) as made:
        status, session, _ = made.ask("POST", "/v1/sessions", {"name": "mine", "system": "Be brief."})
        assert status == 201
        first = ask(made, session["id"], "First question, with some words to read.")
        assert first["stillroom"]["session"] == session["id"]
        before = first["usage"]["prompt_tokens"]
    with running([tiny_gguf], tmp_path) as made:
        again = ask(made, session["id"], "Second.")
        cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= before * 0.8, "the engine's state came back from the disk"
        _, whole, _ = made.ask("GET", f"/v1/sessions/{session['id']}")
        assert [message["role"] for message in whole["messages"]] == ["system", *["user", "assistant"] * 2]
        assert made.ask("PATCH", f"/v1/sessions/{session['id']}", {"name": "yours"})[1]["name"] == "yours"
        assert [entry["name"] for entry in made.ask("GET", "/v1/sessions")[1]["data"]] == ["yours"]
        assert made.ask("DELETE", f"/v1/sessions/{session['id']}")[0] == 200
        assert made.ask("GET", f"/v1/sessions/{session['id']}")[0] == 404


def test_a_full_context_leaves_out_the_oldest_and_says_so(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path, context=256, parallel=1) as made:
        _, session, _ = made.ask("POST", "/v1/sessions", {"system": "Be brief."})
        left = [
            ask(made, session["id"], f"Question {number}: " + "word " * 20)["stillroom"]["context"]["left_out"]
            for number in range(8)
        ]
        assert left[0] == 0
        assert left[-1] > 0
        _, whole, _ = made.ask("GET", f"/v1/sessions/{session['id']}")
        assert len(whole["messages"]) == 17, "what no longer fits is still kept"
        assert whole["left_out"] == left[-1]
        assert "left out" in made.ask("GET", "/health")[1]["context_policy"]


def test_sessions_can_be_blocked_alone(server: Running) -> None:
    server.switch.set_feature("sessions", "blocked")
    try:
        assert server.ask("POST", "/v1/sessions", {})[0] == 503
        assert server.chat("Go")[0] == 200
    finally:
        server.switch.set_feature("sessions", "available")


def test_what_another_server_deletes_meanwhile_stays_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with one folder: the one deletes while the other is between reading and writing."""
    one, other = SessionStore(tmp_path, keyring=False), SessionStore(tmp_path, keyring=False)
    session = one.create("", "m", "d")
    reached, save = threading.Event(), one.save

    def slowly(found: Session) -> None:
        reached.set()
        time.sleep(0.2)
        save(found)

    monkeypatch.setattr(one, "save", slowly)
    writer = threading.Thread(target=one.append, args=(session, [{"role": "user", "content": "x"}], 0))
    writer.start()
    assert reached.wait(5)
    other.delete(session.id)
    writer.join()
    with pytest.raises(NoSession):
        one.load(session.id)


def test_nothing_is_sealed_under_a_key_that_another_process_purged(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    server = SessionStore(folder, keyring=False)
    server.create("", "m", "d")
    SessionStore(folder, keyring=False).purge()
    shutil.rmtree(folder)
    made = server.create("", "m", "d", "You are kind.")
    assert SessionStore(folder, keyring=False).load(made.id).messages[0]["content"] == "You are kind."


@pytest.mark.parametrize("given_up", ["save", "restore"])
def test_a_request_that_is_given_up_leaves_no_state_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_up: str
) -> None:
    """The engine goes on with what it was asked, after the client has left."""
    engine = SimpleNamespace(folder=tmp_path, socket=tmp_path / "s", key="k")
    seen: list[str] = []

    async def call(_socket: Path, _key: str, _method: str, path: str, body: dict[str, str]) -> None:
        seen.append(body["filename"])
        await asyncio.sleep(0.1)
        if path.endswith("save"):
            (tmp_path / body["filename"]).write_bytes(b"secret")

    async def leave() -> Slot:
        slot = Slot(0, held="mine", session="s", owner="")
        for _ in range(2):
            work = save_slot(engine, slot) if given_up == "save" else restore_slot(engine, slot, b"secret")  # type: ignore[arg-type]
            task = asyncio.ensure_future(work)
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
        await asyncio.sleep(0.2)
        return slot

    monkeypatch.setattr(local, "call", call)
    slot = asyncio.run(leave())
    assert len(set(seen)) == 2, "no file is two requests'"
    assert not [*tmp_path.iterdir()]
    assert given_up == "save" or slot.owner == SOMEBODY
