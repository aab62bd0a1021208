"""Nobody's request holds up another's: long ones are prepared elsewhere, and an engine's time is shared between keys."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from serve_support import running

from stillroom.core.errors import NotWritable, SwitchedOff
from stillroom.runtime.engine import EngineOptions
from stillroom.runtime.facts import GgufFacts
from stillroom.serving import answers, handed, peer, pool, preparing_child, requests, responses, sessions, turns
from stillroom.serving.apart import run_apart
from stillroom.serving.app import Limits
from stillroom.serving.models import OpenedModel
from stillroom.serving.pool import ServedModel
from stillroom.serving.preparing import Preparing
from stillroom.serving.problems import Refused
from stillroom.serving.queues import FairQueue
from stillroom.switch import Places, Switch, stopping
from stillroom.switch.engines import listed

KEYS = [f"a-key-of-a-test-{number:04}" for number in range(2)]
BOMB = {"oneOf": [{"const": f"word {number}"} for number in range(500)]}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": BOMB}}


def with_key(number: int) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[number]}", "Content-Type": "application/json"}


def preparers(switch: Switch) -> list[int]:
    return [entry.pid for _, entry in listed(switch.places) if entry.kind == "preparer"]


def test_jobs_are_done_in_a_process_of_their_own_which_off_ends(tmp_path: Path) -> None:
    switch = Switch(Places.under(tmp_path))

    async def work() -> None:
        made = Preparing(switch)
        body = json.dumps({"messages": [{"role": "user", "content": "x" * 40_000}], "response_format": FORM}).encode()
        asked = await made.do("", "read", "ChatRequest", body)
        assert isinstance(asked, requests.ChatRequest)
        assert asked == preparing_child.read_body("ChatRequest", body)
        question = await made.do("", "ask", asked, None, GgufFacts(False, 100), "me")
        assert question.owner == "me"
        assert question.watched
        assert "word 499" in question.body["grammar"]
        with pytest.raises(Refused, match="at most 2048") as refused:
            many = json.dumps({"messages": [{"role": "user", "content": "x"}] * 3000}).encode()
            await made.do("", "read", "ChatRequest", many)
        assert refused.value.status == 400
        with pytest.raises(Refused, match="at most 262,144"):
            long = {"type": "string", "enum": ["y" * 300_000]}
            text = json.dumps({"messages": [{"role": "user", "content": "x"}], "format": long})
            await made.do("", "read", "ChatRequest", text.encode())
        with pytest.raises(Refused, match="not JSON"):
            await made.do("", "read", "ChatRequest", b"[" * 100_000)
        (pid,) = preparers(switch)
        # It is found by its command line too, as an engine is.
        for path in switch.places.engines.glob("preparer-*.json"):
            path.unlink()
        assert preparers(switch) == [pid]
        receipt = await asyncio.to_thread(stopping.off, Switch(switch.places))
        assert receipt.stopped == [], "it is no engine"
        assert preparers(switch) == []
        with pytest.raises(SwitchedOff):
            await made.do("", "read", "SessionName", b'{"name": "x"}')
        stopping.on(switch)
        found = await made.do("", "read", "SessionName", b'{"name": "x"}')
        assert found.name == "x"
        made.close()
        assert preparers(switch) == []

    asyncio.run(work())


def test_a_process_that_is_ended_from_outside_is_started_again(tmp_path: Path) -> None:
    switch = Switch(Places.under(tmp_path))

    async def work() -> None:
        made = Preparing(switch, 3)
        # All that wait may have been ended.
        await asyncio.gather(*(made.do(owner, "read", "SessionName", b'{"name": "x"}') for owner in "abc"))
        waiting = preparers(switch)
        assert len(waiting) == 3
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)
        assert (await made.do("", "read", "SessionName", b'{"name": "x"}')).name == "x"
        # A job that takes too long ends it, and is the client's fault.
        (pid,) = preparers(switch)
        os.kill(pid, signal.SIGSTOP)
        long = asyncio.ensure_future(made.do("", "read", "SessionName", b'{"name": "x"}'))
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGPROF)  # as its timer does
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(Refused, match="takes too long"):
            await long
        assert (await made.do("", "read", "SessionName", b'{"name": "x"}')).name == "x"
        made.close()

    asyncio.run(work())


def test_clients_are_prepared_for_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    async def slow(self: Preparing, data: bytes) -> bytes:
        await asyncio.sleep(0.01)
        return handed.written(("done", handed.read(data)[1]))

    monkeypatch.setattr(Preparing, "_asked", slow)

    async def work() -> None:
        made = Preparing(Switch(Places.under(tmp_path)), 1)

        async def one(owner: str) -> None:
            done.append(await made.do(owner, "x", owner))

        await asyncio.gather(*(one("many") for _ in range(6)), one("few"))

    asyncio.run(work())
    assert done.index("few") <= 1
    assert done.count("many") == 6


def test_one_who_leaves_when_it_is_their_turn_holds_no_one_up() -> None:
    busy: Counter[str] = Counter()
    queue = FairQueue(lambda: busy, lambda _: not busy.total(), 4, "Full.")
    done: list[str] = []

    async def one(owner: str) -> None:
        async with queue.turn(owner):
            done.append(owner)

    async def work() -> None:
        await one("stays")
        busy["first"] = 1
        stays = asyncio.create_task(one("stays"))
        await asyncio.sleep(0)
        # Served less, so that it is next, though it came later.
        leaves = asyncio.create_task(one("leaves"))
        await asyncio.sleep(0)
        del busy["first"]
        await queue.given_back()
        leaves.cancel()
        await asyncio.wait_for(stays, 5)

    asyncio.run(work())
    assert done == ["stays", "stays"]
    assert len(queue) == 0


def test_keys_that_ask_at_once_share_the_slots(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "AT_ONCE_SECONDS", 0.2)
    switch = Switch(Places.under(tmp_path))
    model = ServedModel(OpenedModel(tiny_gguf, "m", tiny_gguf), EngineOptions(parallel=4), switch, queue=16)
    model.shared = True
    ends: dict[str, asyncio.Event] = {}
    have: Counter[str] = Counter()

    async def ask(owner: str) -> None:
        async with model.slot("", owner=owner):
            have[owner] += 1
            await ends.setdefault(owner, asyncio.Event()).wait()
        have[owner] -= 1

    async def work() -> None:
        many = [asyncio.create_task(ask("many")) for _ in range(6)]
        await asyncio.sleep(0.01)
        assert have == {"many": 3}, "one slot is left for somebody else"
        few = asyncio.create_task(ask("few"))
        await asyncio.sleep(0.01)
        assert have == {"many": 3, "few": 1}
        many[0].cancel()
        await asyncio.gather(many[0], return_exceptions=True)
        await asyncio.sleep(0.01)
        held = model._held()
        assert held == {"many": 2, "few": 1}, "half of the slots at most, while the other one asks"
        ends["few"].set()
        await few
        while model._held()["many"] < 3:  # and more when it has not asked for a while
            await asyncio.sleep(0.01)
        ends["many"].set()
        await asyncio.gather(*many[1:])

    asyncio.run(asyncio.wait_for(work(), 30))


def test_what_another_key_goes_on_from_is_taken_last() -> None:
    slots = [pool.Slot(0, held="text", owner="few", used=1), pool.Slot(1, held="other", owner="many", used=2)]
    taken = [max(slots, key=pool._fits("new", None, "many", others)).number for others in ((), ("few",))]
    assert taken == [0, 1]
    assert max(slots, key=pool._fits("text and more", None, "few", ("many",))).number == 0


def test_requests_and_questions_are_handed_over_whole() -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/a"}}
    named = {"type": "object", "properties": {"b": schema}, "$defs": {"a": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "a", "parameters": named}}
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "a"}}]}}
    said = [{"role": "user", "content": [{"type": "text", "text": "\U0001f600 <|im_end|> \u0000"}]}]
    chat = {"messages": said, "tools": [tool], "tool_choice": choice, "logit_bias": {"3": -1.5}, "stop": ["a", "b"]}
    flat = {"type": "function", "name": "a", "parameters": {}}
    for asked in (
        preparing_child.read_body("ChatRequest", json.dumps(chat).encode()),
        preparing_child.read_body("ChatRequest", json.dumps({"messages": said, "response_format": FORM}).encode()),
        preparing_child.read_body(
            "CompletionRequest", json.dumps({"prompt": list(range(5000)), "guided_json": named}).encode()
        ),
        preparing_child.read_body(
            "ResponsesRequest", json.dumps({"input": "x", "tools": [flat], "include": []}).encode()
        ),
    ):
        again = handed.read(handed.written(asked))
        assert type(again) is type(asked)
        assert again == asked
        assert again.model_fields_set == asked.model_fields_set
        if isinstance(asked, responses.ResponsesRequest):
            assert again.chat() == asked.chat()
    asked = preparing_child.read_body("ChatRequest", json.dumps(chat).encode())
    assert isinstance(asked, requests.ChatRequest)
    session = sessions.Session("0" * 32, "n", "m", "d", 1.5, 2.5, said)
    question = answers.chat_question(asked, session, GgufFacts(False, 100, ("<|im_end|>",)), "me")
    again = handed.read(handed.written(question))
    assert handed.written(again) == handed.written(question)
    assert (again.body, again.messages, again.session, again.owner) == (question.body, question.messages, session, "me")
    assert again.shield.used
    assert again.shield.restore(again.messages[-1]["content"]) == question.shield.restore(
        question.messages[-1]["content"]
    )
    call = '<tool_call>{"name": "a", "arguments": {"b": ["x", "y", "x"]}}</tool_call>'
    events = [each.repeats.turn({"choices": [{"text": call, "finish_reason": "stop"}]}) for each in (question, again)]
    assert events[0] == events[1]
    assert events[1]["stillroom"]["repeats_left_out"] == 1
    values = [(1, 2), {3}, {4: "b", "$": 1}, b"\xff", re.compile("a", re.I), [None] * 100]
    assert handed.read(handed.written(values)) == values


def test_what_a_process_answers_is_not_taken_for_any_class() -> None:
    for wrong in (os.system, asyncio.Lock(), Refused(400, "x", "y"), Path("/")):
        with pytest.raises(TypeError, match="is not handed over"):
            handed.written([wrong])
    for kind, name in (("model", "BaseModel"), ("record", "Path"), ("object", "Preparing"), ("call", "system"), (1, 2)):
        with pytest.raises(ValueError, match=r"not a request|no kind"):
            handed.read(json.dumps({"$": kind, "name": name, "v": {"fields": {}, "extra": None, "set": []}}).encode())
    for wrong in (
        b"",
        b"[",
        b'{"$": "bytes"}',
        b'{"$": "map", "v": [[[], 1]]}',
        b'{"$": "record", "name": "Session", "v": {}}',
    ):
        with pytest.raises(ValueError):
            handed.read(wrong)


def test_schemas_are_answered_by_a_server_that_was_off(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path) as made:
        assert made.chat("Go", response_format=FORM, max_tokens=2)[0] == 200
        assert preparers(made.switch)
        receipt = made.ask("POST", "/switch/off")[1]
        assert len(receipt["stopped"]) == 1
        assert receipt["silenced"] == [os.getpid()]
        assert preparers(made.switch) == []
        assert made.chat("Go", response_format=FORM)[0] == 503
        stopping.on(made.switch)
        assert made.chat("Go", response_format=FORM, max_tokens=2)[0] == 200
        assert made.chat("x" * 20_000, max_tokens=2)[1]["error"]["code"] == "context_length_exceeded"


def test_off_is_given_in_a_fork() -> None:
    where = run_apart(lambda: {"pid": os.getpid()})
    assert (where["pid"] != os.getpid()) == (os.uname().sysname == "Linux")

    def refuse() -> dict[str, Any]:
        raise NotWritable("It cannot be kept.", "Make room.")

    with pytest.raises(NotWritable, match="cannot be kept"):
        run_apart(refuse)

    def fail_there() -> dict[str, Any]:
        if os.getpid() != here:
            raise ValueError("anything")
        return {"pid": os.getpid()}

    here = os.getpid()
    assert run_apart(fail_there) == {"pid": here}, "what fails in the fork is done here"
    if where["pid"] != here:
        with pytest.raises(ChildProcessError):
            os.waitpid(where["pid"], os.WNOHANG)


def test_who_has_used_less_reads_first() -> None:
    async def work() -> None:
        made = turns.Turns()
        order: list[str] = []

        async def piece(owner: str) -> None:
            async with made.turn(owner):
                order.append(owner)
                await asyncio.sleep(0.02)

        with made.working("many"):
            await asyncio.sleep(0.05)
        assert made.weight("many") > made.weight("few") == 0
        first = asyncio.ensure_future(piece("many"))
        await asyncio.sleep(0.01)
        await asyncio.gather(piece("many"), piece("few"), first)
        assert order == ["many", "few", "many"]
        assert not made.contested("many")
        with made.answering("few"):
            assert made.contested("many")
            assert not made.contested("few")

    asyncio.run(work())


def test_no_key_takes_every_place_and_long_prompts_make_way(tiny_gguf: Path, tmp_path: Path) -> None:
    async def places(made: Any) -> None:
        (model,) = made.service.pool.models.values()
        assert model.shared
        async with model.slot("a", owner="many"):
            waiting = asyncio.ensure_future(model.slot("b", owner="many").__aenter__())
            await asyncio.sleep(0.02)
            assert not waiting.done()
            async with model.slot("c", owner="few"):
                pass
            waiting.cancel()

    with running([tiny_gguf], tmp_path, limits=Limits(keys=KEYS), context=1024) as made:
        asyncio.run(places(made))
        (model,) = made.service.pool.models.values()
        text = "".join(f"{number} is a number. " for number in range(60))
        body = {"prompt": text, "max_tokens": 8, "temperature": 0}
        plain = made.ask("POST", "/v1/completions", body, with_key(0))[1]
        with model.turns.answering("somebody"):
            other = made.ask("POST", "/v1/completions", body, with_key(1))[1]
            again = made.ask("POST", "/v1/completions", {**body, "prompt": text + "And so on. " * 20}, with_key(1))[1]
        assert plain["usage"]["prompt_tokens"] > 4 * turns.PIECE
        assert other["choices"] == plain["choices"], "in pieces it reads the same"
        assert other["usage"] == plain["usage"], "what was read ahead for this request is no cache's"
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_the_kernel_says_whose_a_connection_is() -> None:
    if not peer.can_tell():
        pytest.skip("this system does not say")
    for kind, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(kind) as listener:
            try:
                listener.bind((host, 0))
            except OSError:
                continue  # no IPv6 here
            listener.listen()
            client = socket.create_connection(listener.getsockname()[:2])
            with listener.accept()[0] as served:
                ends = (client.getsockname()[:2], served.getsockname()[:2])
                assert peer.user_of(*ends) == peer._in_table(*ends) == os.getuid()
                client.close()
                time.sleep(0.05)
                # The kernel calls an end that was closed root's, whosever it was.
                assert peer.user_of(*ends) is None
                assert peer._in_table(*ends) is None


def test_a_flood_of_connections_shuts_out_nobody_who_has_asked(tiny_gguf: Path, tmp_path: Path) -> None:
    with running([tiny_gguf], tmp_path) as made:
        links = []
        try:
            first = socket.create_connection(("127.0.0.1", made.port))
            first.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
            for _ in range(3 * peer.MOST_STRANGERS):
                links.append(socket.create_connection(("127.0.0.1", made.port)))
            first.settimeout(20)
            assert first.recv(100).startswith(b"HTTP/1.1 200")
            first.close()
        finally:
            for link in links:
                link.close()
