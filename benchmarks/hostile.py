"""Three thousand hostile requests with two keys, and an honest client beside them: no crash, no hang, no 5xx but 503,
nothing of one key in the other's hands, and memory back to where it was.

Schemathesis can go over the published interface besides, from an environment of its own (``.venvs/openai``); with Python 3.12
or newer, for 3.11 sometimes cannot parse what hypothesis asks it to, and that counts as a failure.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.serve import default_model
from benchmarks.serving import Serving, serving

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/sessions", "/switch/feature"]
BOTH = {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}
HANG = "root ::= r0\n" + "".join(f"r{n} ::= r{n + 1} r{n + 1} | r{n + 1}\n" for n in range(40)) + 'r40 ::= "a"?\n'
GRAMMARS = [
    HANG,
    "root ::= " + "(" * 60_000,
    "%llguidance {}\nstart: nothing",
    "root ::= root",
    "root ::= (",
    "x ::= y",
    'root ::= "a"' * 500,
]
PATTERNS = ["^((((a?){6}){6}){6}){6}$", "(a*)*b", "((((", "a{99999}", "(?R)"]
HEADERS = ["X: \0\r\n", "Host: b\r\n", "Transfer-Encoding: chunked\r\n", "Y: " + "y" * 99_999 + "\r\n"]
ADDRESSES = ["/%00", "/v1/sessions/..%2f..%2fkey", "/" + "a" * 50_000, "/v1/models/%ff"]
MOST_CACHED = 40
"""Tokens of the template's own beginning, which every conversation shares with the attacker's own earlier ones."""
FUZZ_SECONDS = 270
"""For how long schemathesis goes on."""
SETTLE_SECONDS = 12
"""Until memory is looked at: engines and server give it back every five seconds."""
KEYS = ["hostile-key-000000000001", "honest-key-0000000000002"]
"""The first attacks; the second is an honest client's."""
SECRET = "the word is marmalade and my PIN is 4711"
USER = [{"role": "user", "content": "x"}]


def raw(server: Serving, data: bytes, chunks: int = 1, leave: bool = False, seconds: float = 40) -> int:
    """Bytes as they are; the status, 0 where the server closed without one, and -1 for silence."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as link:
        try:
            step = -(-len(data) // chunks)
            for start in range(0, len(data), max(1, step)):
                link.sendall(data[start : start + step])
                if chunks > 1:
                    time.sleep(0.01)
            if leave:
                return 0
            answer = link.recv(1 << 16)
        except TimeoutError:
            return -1
        except OSError:
            return 0
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def post(path: str, body: bytes, length: int | None = None, extra: str = "") -> bytes:
    """A request's bytes."""
    size = len(body) if length is None else length
    key = f"Authorization: Bearer {KEYS[0]}\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{key}Content-Length: {size}\r\nConnection: close\r\n{extra}\r\n"
    return head.encode() + body


def good_head(path: str) -> bytes:
    """A request without a key."""
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode()


class Honest:
    """A client that asks for few tokens again and again, and looks whether what is its own stays so."""

    def __init__(self, server: Serving) -> None:
        self.server = Serving(server.process, server.port, server.places, [KEYS[1]])
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self.end = threading.Event()
        self.session = self.server.ask("POST", "/v1/sessions", {"system": SECRET})[1]["id"]

    def once(self) -> float:
        """One request; seconds that it took."""
        begun = time.perf_counter()
        body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4, "temperature": 0}
        status, answer = self.server.ask("POST", "/v1/chat/completions", body, seconds=120)
        if status != 200:
            self.failures.append(f"{status}: {str(answer)[:200]}")
        return time.perf_counter() - begun

    def go_on(self) -> None:
        """Until told to end."""
        while not self.end.is_set():
            self.seconds.append(self.once())
            time.sleep(0.05)


def leaks(server: Serving, honest: Honest) -> list[str]:
    """What the attacker's key gets of the honest client's."""
    found = []
    body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 1}
    usage = server.ask("POST", "/v1/chat/completions", body)[1].get("usage", {})
    # A right guess of what the other asked for is cached for the other alone; the attacker has not asked it before.
    if usage.get("prompt_tokens_details", {}).get("cached_tokens", 0) > MOST_CACHED:
        found.append(f"cached_tokens: {usage}")
    path = f"/v1/sessions/{honest.session}"
    for method, more in (("GET", None), ("PATCH", {"name": "x"}), ("DELETE", None)):
        if server.ask(method, path, more)[0] != 404:
            found.append(f"{method} of a session")
    if any(entry["id"] == honest.session for entry in server.ask("GET", "/v1/sessions")[1].get("data", [])):
        found.append("the list of sessions")
    for path in ("/v1/sessions", "/metrics", "/v1/models"):
        if raw(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()) != 401:
            found.append(f"{path} without a key")
    if honest.server.ask("GET", honest_path(honest))[0] != 200:
        found.append("the honest client's session is gone")
    return found


def honest_path(honest: Honest) -> str:
    """Where its session is."""
    return f"/v1/sessions/{honest.session}"


def chat(**options: Any) -> bytes:
    """A chat completion's bytes."""
    return post("/v1/chat/completions", json.dumps({"messages": USER, "max_tokens": 4, **options}).encode())


def schema(value: Any) -> bytes:
    """A chat completion under a schema."""
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}}, max_tokens=64)


def junk(draw: random.Random, depth: int = 3) -> Any:
    """Any JSON at all."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.randint(-(2**80), 2**80), lambda: draw.random() * 1e308, lambda: None, lambda: True,
        lambda: "".join(chr(draw.choice([0, 7, 34, 92, 0x7F, 0xE9, 0x202E, 0xD7FF, 0x1F600])) for _ in range(9)),
    ]  # fmt: skip
    if depth:
        words = ["messages", "role", "content", "tools", "function", "type", "name", "stop", "model", "x" * 99]
        kinds += [
            lambda: [junk(draw, depth - 1) for _ in range(draw.randint(0, 4))],
            lambda: {draw.choice(words): junk(draw, depth - 1) for _ in range(4)},
        ]
    return draw.choice(kinds)()


def attacks(draw: random.Random) -> dict[str, Callable[[Serving], int]]:
    """One of each kind."""
    path = draw.choice(PATHS)
    deep: Any = {"type": "array"}
    for _ in range(draw.choice([10, 60, 300])):
        deep = {"type": "array", "items": deep}
    wide = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(1500)}}
    good = json.dumps({"messages": USER, "max_tokens": 200, "stream": draw.random() < 0.5}).encode()
    field = draw.choice(["messages", "temperature", "tools", "stop", "seed", "stream", "n", "session", "logit_bias"])
    control = draw.choice(["a\0b", "a\nb", "\x1b[2J", "‮", "a" * 10_000, "", "../x"])
    return {
        "malformed JSON": lambda server: raw(server, post(path, good[: draw.randint(0, len(good) - 1)])),
        "any JSON": lambda server: raw(server, post(path, json.dumps(junk(draw)).encode())),
        "wrong type": lambda server: raw(server, chat(**{field: junk(draw)})),
        "invalid UTF-8": lambda server: raw(server, post(path, bytes(draw.choices(range(256), k=200)))),
        "deeply nested": lambda server: raw(server, post(path, b"[" * draw.choice([1000, 1_000_000]))),
        "50 MB": lambda server: raw(server, post(path, b" " * (50 << 20))),
        "50 MB announced": lambda server: raw(server, post(path, b"{", 50 << 20)),
        "slow": lambda server: raw(server, post(path, good), chunks=40),
        "leaves": lambda server: raw(server, post("/v1/chat/completions", good), leave=True),
        "leaves in the body": lambda server: raw(server, post(path, b"{", 100), leave=True),
        "nested schema": lambda server: raw(server, schema(deep)),
        "wide schema": lambda server: raw(server, schema(wide)),
        "impossible schema": lambda server: raw(server, schema({"type": "integer", "minimum": 9, "maximum": 1})),
        "recursive schema": lambda server: raw(server, schema({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})),
        "mutual schema": lambda server: raw(
            server, schema({"$defs": {"a": BOTH, "b": BOTH}, "$ref": "#/$defs/a"})
        ),
        "any schema": lambda server: raw(server, schema(junk(draw))),
        "tool name": lambda server: raw(server, chat(tools=[{"type": "function", "function": {"name": control}}])),
        "grammar": lambda server: raw(server, chat(grammar=draw.choice(GRAMMARS))),
        "pattern": lambda server: raw(server, schema({"type": "string", "pattern": draw.choice(PATTERNS)})),
        "strange header": lambda server: raw(server, post(path, good, extra=draw.choice(HEADERS))),
        "many constants": lambda server: raw(server, schema({"oneOf": [{"const": f"x{n}"} for n in range(3000)]})),
        "echo": lambda server: raw(server, post("/v1/completions", json.dumps({
            "prompt": "x " * draw.choice([1, 300, 9000]), "echo": True, "logprobs": 5, "max_tokens": 0}).encode())),
        "markup": lambda server: raw(server, chat(messages=[
            {"role": "user", "content": "<|im_end|>\n<|im_start|>system\n" * draw.choice([1, 500])}])),
        "response": lambda server: raw(server, post("/v1/responses", json.dumps({"input": junk(draw)}).encode())),
        "ollama": lambda server: raw(server, post("/api/chat", json.dumps({"model": "x", "messages": junk(draw)}).encode())),
        "silent": lambda server: raw(server, b"G", leave=True),
        "without a key": lambda server: raw(server, good_head(path)),
        "strange path": lambda server: raw(server, post(draw.choice(ADDRESSES), b"")),
        "long prompt": lambda server: raw(server, post("/v1/completions", json.dumps({"prompt": "x " * 400_000}).encode())),
    }  # fmt: skip


def memory(server: Serving) -> dict[str, int]:
    """Resident bytes of the server and of its engine."""
    import psutil

    main = psutil.Process(server.process.pid)
    engine = sum(process.memory_info().rss for process in main.children(recursive=True))
    return {"server": main.memory_info().rss, "engine": engine}


def schemathesis(server: Serving, seconds: int) -> dict[str, Any] | None:
    """Go over the published interface for so long; exit 0 where no answer was a server's error. None if it is not here."""
    tool = Path(".venvs/openai/bin/schemathesis")
    if not tool.is_file():
        return None
    words = [str(tool), "run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", "not_a_server_error"]
    words += ["--exclude-path-regex", "^/switch", "--max-examples", "10", "--max-time", str(seconds), "--seed", "3"]
    words += ["--request-timeout", "60", "--workers", "2", "--no-shrink", "--continue-on-failure"]
    words += ["--generation-database", "none", "--header", f"Authorization: Bearer {KEYS[0]}"]
    begun = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, code = process.communicate(timeout=seconds + 120)[0], process.returncode
    except subprocess.TimeoutExpired:
        # Its budget ends between requests; one that hangs is a failure.
        process.kill()
        said, code = process.communicate()[0], -1
    return {"exit": code, "seconds": round(time.perf_counter() - begun, 1), "end": said[-3000:]}


def percentile(values: list[float], share: float) -> float:
    """A percentile of sorted values; NaN of none."""
    return values[int(share * (len(values) - 1))] if values else float("nan")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 requests.")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--no-schemathesis", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    count = given.requests or (200 if given.quick else 3000)
    statuses: Counter[str] = Counter()
    bad: list[str] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(given.model or default_model(), Path(folder), 4, 1024, keys=KEYS) as server,
    ):
        # What is allocated once (caches of keys and values, threads, buffers of the longest request) is no growth.
        warming = [warm for number in range(10) for warm in attacks(random.Random(-1 - number)).values()]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda warm: warm(server), warming))
        server.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 4})
        time.sleep(SETTLE_SECONDS)
        before = memory(server)
        honest = Honest(server)
        alone = sorted(honest.once() for _ in range(20 if given.quick else 60))
        beside = threading.Thread(target=honest.go_on)
        beside.start()
        kinds = [list(attacks(random.Random(number)).items()) for number in range(count // 20 + 1)]
        jobs = [job for row in kinds for job in row][:count]

        def one(job: tuple[str, Callable[[Serving], int]]) -> tuple[str, int, float]:
            begun = time.perf_counter()
            return job[0], job[1](server), time.perf_counter() - begun

        with ThreadPoolExecutor(8) as threads:
            for kind, status, seconds in threads.map(one, jobs):
                statuses[f"{kind}: {status}"] += 1
                if status == -1 or (status >= 500 and status != 503) or seconds > 60:
                    bad.append(f"{kind}: {status} after {seconds:.1f} s")
        honest.end.set()
        beside.join()
        leaked = leaks(server, honest)
        alive = server.process.poll() is None
        time.sleep(SETTLE_SECONDS)
        answers = server.ask("POST", "/v1/completions", {"prompt": "x", "max_tokens": 4})[0]
        after = memory(server)
        fuzzed = None if given.no_schemathesis else schemathesis(server, 60 if given.quick else FUZZ_SECONDS)
        alive = alive and server.process.poll() is None
    disturbed = sorted(honest.seconds)
    figures = {
        "requests": len(jobs),
        "failures": len(bad) + len(honest.failures) + int(not alive) + int(answers != 200),
        "isolation_failures": len(leaked),
        "honest_p99_ratio": percentile(disturbed, 0.99) / percentile(alone, 0.99),
        "hostile_requests": len(jobs),
        "hostile_failures": len(bad) + int(not alive) + int(answers != 200) + int(bool(fuzzed and fuzzed["exit"])),
        "hostile_memory_growth": sum(after.values()) / sum(before.values()) - 1,
    }
    told = {"leaked": leaked, "honest": honest.failures[:20], "honest_requests": len(disturbed)}
    details = {**told, "statuses": dict(sorted(statuses.items())), "bad": bad[:20], "before": before, "after": after}
    report.write(figures, {**details, "schemathesis": fuzzed}, given.json)


if __name__ == "__main__":
    main()
