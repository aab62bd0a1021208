"""The opt-in log of requests: metadata, bounded, and what `guard intake` makes of it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter, PoolingType
from serve_support import running
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import UsageError
from stillroom.formats import gguf_file
from stillroom.guard.intake import intake
from stillroom.guard.log_store import create_store
from stillroom.serving import request_log
from stillroom.serving.app import Limits
from stillroom.serving.request_log import RequestLog


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_leaves_numbers_and_digests(tiny_gguf: Path, tmp_path: Path) -> None:
    """Neither the text, nor the key, nor the end user is in the log; usage and parameters are; intake reads it."""
    log = RequestLog(tmp_path / "requests.jsonl")
    with running([tiny_gguf], tmp_path, limits=Limits(keys=["sk-own"]), request_log=log) as server:
        headers = {"Authorization": "Bearer sk-own", "User-Agent": "tool/1"}
        body = {"messages": [{"role": "user", "content": "Xylophone"}], "max_tokens": 4, "user": "ann", "seed": 1}
        body["logit_bias"] = {"2": -100}  # Not the end: four tokens are said.
        assert server.ask("POST", "/v1/chat/completions", body, headers)[0] == 200
        # The client is not told how many tokens there were; the log is.
        streamed = {**body, "stream": True}
        assert server.ask("POST", "/v1/chat/completions", streamed, headers)[0] == 200
        assert server.ask("POST", "/v1/chat/completions", b"{nonsense", headers)[0] == 400
        assert server.ask("POST", "/v1/chat/completions", body)[0] == 401
        wrong = {"Authorization": "Bearer sk-of-elsewhere"}
        assert server.ask("POST", "/v1/chat/completions", body, wrong)[0] == 401
        assert server.ask("GET", "/v1/models", None, headers)[0] == 200
    log.close()
    found = lines(log.path)
    assert [line["status"] for line in found] == [200, 200, 400, 401, 401]
    assert all("key" in line for line in found[:3])
    assert not any({"key", "account"} & line.keys() for line in found[3:])
    assert all(line["ip"] == "127.0.0.0" and line["time"] for line in found[3:])
    assert all(line["completion_tokens"] == 4 and line["turns"] == 1 and line["seeded"] for line in found[:2])
    assert found[0]["prompt_tokens"] == found[1]["prompt_tokens"] > 0  # type: ignore[operator]
    assert [line["stream"] for line in found[:3]] == [False, True, False]
    text = log.path.read_text()
    assert not any(
        word in text for word in ("Xylophone", "sk-own", "elsewhere", log.digest("sk-of-elsewhere"), "ann", "tool/1")
    )
    assert "127.0.0.0" in text
    report = intake([log.path], create_store(tmp_path / "store"))
    assert report.rows == 3
    assert report.formats == {"stillroom": 5}
    assert report.skipped == {"names no account (see --account)": 2}


@pytest.mark.parametrize("more", [{}, {"echo": True}, {"max_tokens": 0, "echo": True}])
def test_completions_of_several_prompts_are_counted_together(
    tiny_gguf: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    log = RequestLog(tmp_path / "requests.jsonl")
    body = {"prompt": ["Xylophone", "Ann"], "max_tokens": 2, "seed": 3, "logit_bias": {"2": -100}, **more}
    with running([tiny_gguf], tmp_path, request_log=log) as server:
        status, answer, _ = server.ask("POST", "/v1/completions", body)
        assert status == 200, answer
        assert server.ask("POST", "/v1/completions", {**body, "stream": True})[0] == 200
    log.close()
    for line in lines(log.path):
        for name in ("prompt_tokens", "completion_tokens"):
            assert line[name] == answer["usage"][name], (line, answer["usage"])


def test_a_client_that_hangs_up_leaves_what_it_was_sent(tiny_gguf: Path, tmp_path: Path) -> None:
    """Before the engine's count: at least a token for each event."""
    log = RequestLog(tmp_path / "requests.jsonl")
    body = {"messages": [{"role": "user", "content": "Xylophone"}], "max_tokens": 400, "logit_bias": {"2": -100}}
    with running([tiny_gguf], tmp_path, request_log=log) as server:
        events = server.stream("/v1/chat/completions", {**body, "seed": 1})
        told = 0
        while told < 3:
            told += bool(next(events)["choices"][0]["delta"].get("content"))
        events.close()  # type: ignore[attr-defined]
        while not log.path.read_text():
            time.sleep(0.05)
    log.close()
    (found,) = lines(log.path)
    assert 3 <= found["completion_tokens"] <= 400  # type: ignore[operator]


def test_tokens_of_embeddings_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = gguf_file.add_hyperparameters

    def with_pooling(writer: GGUFWriter, *arguments: Any) -> Any:
        writer.add_pooling_type(PoolingType.MEAN)
        return keys(writer, *arguments)

    monkeypatch.setattr(gguf_file, "add_hyperparameters", with_pooling)
    folder = tiny_model("llama", tmp_path / "model", layers=2)
    gguf_file.write_gguf(folder, tmp_path / "pooled.gguf", "F32", name="pooled", licence=None)
    log = RequestLog(tmp_path / "requests.jsonl")
    with running([tmp_path / "pooled.gguf"], tmp_path, request_log=log) as server:
        # Longer than any end of an answer that could be looked at.
        status, answer, _ = server.ask("POST", "/v1/embeddings", {"input": ["Xylophone"] * 1200})
    log.close()
    assert status == 200, answer
    assert len(json.dumps(answer)) > 1 << 20
    assert lines(log.path)[0]["prompt_tokens"] == answer["usage"]["prompt_tokens"] > 0


def test_texts_are_logged_where_asked(tiny_gguf: Path, tmp_path: Path) -> None:
    """Then intake sees templates too."""
    log = RequestLog(tmp_path / "requests.jsonl", texts=True)
    with running([tiny_gguf], tmp_path, request_log=log) as server:
        assert server.chat("Xylophone")[0] == 200
    log.close()
    assert lines(log.path)[0]["messages"] == [{"role": "user", "content": "Xylophone"}]
    assert "text" not in intake([log.path], create_store(tmp_path / "store")).missing


def test_the_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full files are set aside, and the oldest go."""
    monkeypatch.setattr(request_log, "FILE_BYTES", 400)
    monkeypatch.setattr(request_log, "FILES", 3)
    log = RequestLog(tmp_path / "requests.jsonl")
    for number in range(100):
        log.write({"number": number, "pad": "x" * 80})
    log.close()
    kept = sorted(path.name for path in tmp_path.glob("requests.jsonl*") if "secret" not in path.name)
    assert kept == ["requests.jsonl", *(f"requests.jsonl.{number}" for number in (1, 2, 3))]
    assert all((tmp_path / name).stat().st_size <= 400 for name in kept)
    assert lines(log.path)[-1]["number"] == 99


def test_a_file_that_could_not_be_set_aside_stops_no_later_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(request_log, "FILE_BYTES", 60)
    log = RequestLog(tmp_path / "requests.jsonl")
    replace, failed = Path.replace, threading.Event()

    def once(path: Path, target: Path) -> Path:
        if not failed.is_set():
            failed.set()
            raise OSError("Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", once)
    for number in range(6):
        log.write({"number": number, "pad": "x" * 30})
    log.close()
    written = [path for path in sorted(tmp_path.glob("requests.jsonl*"), reverse=True) if path.suffix != ".secret"]
    kept = [line["number"] for path in written for line in lines(path)]
    assert kept == [0, 2, 3, 4, 5]
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_half_a_line_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that fills up takes a part of a line; a server that was killed left one."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b'{"number": 0}\n{"num')
    log = RequestLog(path)
    write, full = os.write, threading.Event()

    def short(handle: int, data: bytes | memoryview) -> int:
        if b'"number":1' not in bytes(data) and not full.is_set():
            return write(handle, data)
        if full.is_set():
            full.clear()
            raise OSError(errno.ENOSPC, "No space left on device")
        full.set()
        return write(handle, data[:5])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        for number in (1, 2):
            log.write({"number": number})
        log.close()
    assert path.read_bytes() == b'{"number": 0}\n{"num\n{"number":2}\n'
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_a_slow_disk_holds_up_no_answer_and_loses_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "QUEUED", 3)
    log = RequestLog(tmp_path / "requests.jsonl")
    disk, append = threading.Event(), log._append
    monkeypatch.setattr(log, "_append", lambda line: (disk.wait(), append(line)))

    async def serve() -> None:
        answered = [asyncio.create_task(log.write_in_turn({"number": number})) for number in range(5)]
        # The loop goes on; two requests wait for room themselves.
        done, waiting = await asyncio.wait(answered, timeout=0.2)
        assert (len(done), len(waiting)) == (3, 2)
        waiting.pop().cancel()
        await asyncio.sleep(0)
        disk.set()
        await asyncio.gather(*answered, return_exceptions=True)

    asyncio.run(serve())
    log.close()
    assert sorted(line["number"] for line in lines(log.path)) == [0, 1, 2, 3, 4]


def test_lines_that_a_disk_never_takes_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(request_log, "PATIENCE", 0.05)
    log = RequestLog(tmp_path / "requests.jsonl")
    disk = threading.Event()
    monkeypatch.setattr(log, "_append", lambda _: disk.wait())
    for number in range(2):
        log.write({"number": number})
    log.close()
    disk.set()
    assert "lost its last 2 lines" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Before anything is served."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        RequestLog(tmp_path / "file" / "log")


def test_no_api_is_a_way_round_the_log(tiny_gguf: Path, tmp_path: Path) -> None:
    """Wherever a model answers, the request leaves its line, with its texts and its count of tokens."""
    log = RequestLog(tmp_path / "requests.jsonl", texts=True)
    name = tiny_gguf.stem
    options = {"num_predict": 4, "temperature": 0.5, "seed": 3}
    asked = [
        ("/v1/responses", {"input": "Xylophone", "instructions": "Be brief", "max_output_tokens": 4}),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": "Xylophone"}], "max_output_tokens": 4, "stream": True},
        ),
        ("/api/chat", {"messages": [{"role": "user", "content": "Xylophone"}], "options": options}),
        ("/api/generate", {"prompt": "Xylophone", "system": "Be brief", "options": options, "stream": False}),
        ("/api/generate", {"prompt": "Xylophone", "raw": True, "options": options}),
    ]
    with running([tiny_gguf], tmp_path, request_log=log) as server:
        for path, body in asked:
            assert server.ask("POST", path, {"model": name, **body})[0] == 200
    log.close()
    found = lines(log.path)
    assert [line["path"] for line in found] == [path for path, _ in asked]
    assert [line["stream"] for line in found] == [False, True, True, False, True]
    counts = [(line.get("prompt_tokens", 0), line.get("completion_tokens", 0)) for line in found]
    assert all(asked > 0 and 0 < answered <= 4 for asked, answered in counts), counts  # type: ignore[operator]
    assert all(line["max_tokens"] == 4 and "Xylophone" in json.dumps(line) for line in found)
    assert all(line["seeded"] and line["temperature"] == 0.5 for line in found[2:])
    store = create_store(tmp_path / "store")
    report = intake([log.path], store)
    assert report.rows == len(asked)
    assert "text" not in report.missing


def test_the_log_is_no_file_that_the_server_reads(tiny_gguf: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("sk-own\n")
    for log in (keys, tiny_gguf):
        words = ["serve", str(tiny_gguf), "--key-file", str(keys), "--request-log", str(log)]
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, UsageError), result.output
        assert "would be overwritten" in str(result.exception)
    assert keys.read_text() == "sk-own\n"
