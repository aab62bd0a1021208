"""A server that answers as vLLM does, from a table, and can go wrong in fifteen ways: for tests and benchmarks."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

FAULTS = {
    "drops a position": "dropped positions",
    "ignores echo": "was not scored",
    "fewer ids": "fewer ids",
    "other model": "another model",
    "429": "too many requests",
    "500": "status 500",
    "garbage": "not JSON",
    "slow": "slow",
    "half a body": "broke before the answer was whole",
    "wrong tokenizer": "not those of the recipe's tokenizer",
    "mass above 1": "sum to more than 1",
    "redirect": "redirects",
    "headers byte by byte": "slow",
    "lists of another text": "of another text",
    "minus infinity": "a log-probability is -inf",
}
"""Ways to go wrong, and the words by which an error has to name each."""


class FakeServer(ThreadingHTTPServer):
    """Serves a table of log-probabilities.

    Args:
        size: Ids of the vocabulary.
        fault: One of ``FAULTS``; None: none.
        at: The number of the scoring request, from 0, at which it begins to go wrong.
        seed: Of the table.
        noise: Standard deviation that is added to logits, anew for each answer.
    """

    daemon_threads = True

    def __init__(
        self, size: int, fault: str | None = None, at: int = 0, *, seed: int = 0, noise: float = 0.0, pause: float = 0.0
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.size, self.fault, self.at, self.noise, self.pause = size, fault, at, noise, pause
        self.table = torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).mul(3)
        self.other = torch.randn(size, size, generator=torch.Generator().manual_seed(seed + 1)).mul(3)
        self.scored: list[list[int]] = []
        """The ids of every request that was answered in full, in order."""
        self.asked = 0
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is not worth a word."""


@contextlib.contextmanager
def serving(server: FakeServer) -> Iterator[FakeServer]:
    """The server, answering."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Quiet."""

    def do_GET(self) -> None:
        """Models and version."""
        known = {
            "/v1/models": {"data": [{"id": "served", "owned_by": "vllm", "max_model_len": 4096}]},
            "/version": {"version": "0.0-fake"},
        }
        self._answer(200 if self.path in known else 404, known.get(self.path, {}))

    def do_POST(self) -> None:
        """Scores a given text."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        if self.path != "/v1/completions":
            self._answer(404, {})
            return
        with server.lock:
            number = server.asked
            server.asked += 1
            server.headers.append(dict(self.headers))
            server.bodies.append(body)
        fault = server.fault if number >= server.at else None
        if server.pause:
            time.sleep(server.pause)
        if fault in ("429", "500"):
            self._answer(int(fault), {"error": {"message": f"no: {self.headers.get('Authorization')}"}})
        elif fault == "redirect":
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "garbage":
            self._raw(b"<html>" + (self.headers.get("Authorization") or "").encode() + b"</html>")
        elif fault == "slow":
            time.sleep(1.0)
            self._answer(200, {})
        elif fault == "headers byte by byte":
            self._drip()
        elif fault == "half a body":
            data = json.dumps(self._scores(body, None)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        else:
            value = self._scores(body, fault)
            if fault is None:
                with server.lock:
                    server.scored.append(list(body["prompt"]))
            self._answer(200, value)

    def _scores(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
        ids, k = list(body["prompt"]), int(body["prompt_logprobs"])
        table = self.server.other if fault == "other model" else self.server.table
        logits = table[torch.tensor(ids[:-1])]
        if self.server.noise:
            logits = logits + self.server.noise * torch.randn_like(logits)
        best, order = torch.log_softmax(logits, 1).topk(k - (fault == "fewer ids"), 1)
        if fault == "mass above 1":
            best = best + 1.0
        listed: list[Any] = [None]
        for row, (values, chosen) in enumerate(zip(best.tolist(), order.tolist(), strict=True)):
            entry = {
                str(token): {"logprob": value, "rank": rank + 1, "decoded_token": "?"}
                for rank, (token, value) in enumerate(zip(chosen, values, strict=True))
            }
            own = str(ids[row + 1])
            # As vLLM does: the text's own token is added where it is not among the most probable.
            entry.setdefault(own, {"logprob": -30.0, "rank": 400, "decoded_token": "?"})
            listed.append(entry)
        choice: dict[str, Any] = {"index": 0, "text": "", "prompt_token_ids": ids}
        if fault == "lists of another text":
            del choice["prompt_token_ids"]
            same = {str(token): {"logprob": -3.1, "rank": rank + 1} for rank, token in enumerate(range(k))}
            listed[1:] = [{key: item for key, item in same.items() if key != str(token)} for token in ids[1:]]
        if fault == "minus infinity":
            next(iter(listed[-1].values()))["logprob"] = float("-inf")
        if fault == "drops a position":
            listed.pop()
        if fault == "wrong tokenizer":
            choice["prompt_token_ids"] = [*ids[:-1], (ids[-1] + 1) % self.server.size]
        if fault != "ignores echo":
            choice["prompt_logprobs"] = listed
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"model": "served", "choices": [choice], "usage": usage}

    def _drip(self) -> None:
        """Headers that take several seconds, and never longer than a tenth of one for the next byte."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: ")
            for _ in range(50):
                self.wfile.write(b"a")
                time.sleep(0.1)
            self.wfile.write(b"\r\nContent-Length: 2\r\n\r\n{}")

    def _answer(self, status: int, value: Any) -> None:
        # JSON has no infinity, and a number that is too large for a float is one when it is read.
        self._raw(json.dumps(value).replace("-Infinity", "-1e999").encode(), status)

    def _raw(self, data: bytes, status: int = 200) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
