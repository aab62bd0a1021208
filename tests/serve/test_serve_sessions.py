"""Sessions: kept, sealed, restored, renamed, exported, deleted; and what happens when the context is full."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
from serve_support import Running, running

from stillroom.serve.sessions import NoSession, SessionDamaged, SessionStore


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
