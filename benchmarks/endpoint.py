"""A teacher behind an endpoint: what it lists, whether faults of servers are named, and what is paid for after kills.

    .venv/bin/python -m benchmarks.endpoint [--quick] [--json FILE]

``max_logprob_difference`` compares what llama.cpp's server lists, in a process of its own, with this house's own engine on
the same file, top 20 (the details have the PyTorch teacher beside it). ``faults_named`` counts twelve faulty servers, each at
the first, a middle and the last request: the error has to name the fault, and the next attempt has to complete the cache.
``paid_twice_tokens`` are tokens whose answers were on disk when a capture was killed (kill -9 at random moments) and that
were asked for again. ``cap_exceeded`` counts captures after which the server had been sent more than the cap allows.
``secret_leaks`` counts files, errors, logs and shown lines in which the key, or its beginning, stands. ``--quick`` serves a
tiny model, and takes one place of each fault and three kills.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import importlib
import io
import json
import logging
import multiprocessing
import os
import pickle
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks import material, report
from benchmarks.fake_endpoint import FAULTS, FakeServer, serving
from stillroom.core.errors import TeacherError
from stillroom.core.progress import Progress
from stillroom.models.gguf_source import gguf_path
from stillroom.models.load import load_teacher
from stillroom.recipe.capture import ObservedCodec
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.recipe.teacher import GgufTeacher
from stillroom.runtime.engine import Engine, EngineOptions
from stillroom.signals.cache.observed import Observed
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.teachers.capture import cache_identity
from stillroom.teachers.endpoint.capture import Piece, capture_listed, known_teacher
from stillroom.teachers.endpoint.ledger import CapReached
from stillroom.teachers.endpoint.received import Received
from stillroom.teachers.endpoint.teacher import EndpointTeacher, open_endpoint

KEY_ENV = "STILLROOM_BENCHMARK_KEY"
KEY = "sk-Stillroom-benchmark-0123456789"
SIZE, TOP, PIECES, PROBES = 512, 5, 6, 2
REQUESTS = {"first": 0, "middle": PROBES + PIECES // 2, "last": PROBES + PIECES}
"""Requests of one capture by their numbers, from 0: two of the probe, the pieces, and the last one, which asks whether the same
model still answers."""
LISTED = 20
TEACHER_DIGEST = "ab" * 32
KILLS, KILLED_PIECES, LONGEST_SECONDS = 20, 500, 0.3
TEXT = (
    "The tide tables of a small harbour are printed once a year. They say when the water is high, how high it is, and "
    "when it is low again; the pilots keep them in a drawer beside the log.\n"
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # of a circle\n"
    "In 1867 the bridge was 212 metres long, and 14 of its 22 arches stood in the river."
)


class Clock:
    """Time that passes only when it is slept through, so that retries take none."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        """Seconds."""
        return self.time

    def sleep(self, seconds: float) -> None:
        """Go on so far."""
        self.time += seconds


def pieces(count: int) -> list[Piece]:
    """Texts of random ids, all different."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for number in range(count):
        ids = torch.randint(SIZE, (12 + number % 40,), generator=generator).tolist()
        found.append(Piece(f"{number:064x}", ids, torch.ones(len(ids) - 1, dtype=torch.bool)))
    return found


def captured(address: str, tokenizer: Path, where: Path, texts: list[Piece], **values: Any) -> EndpointTeacher:
    """Probe and capture, as the stage does it."""
    config = EndpointConfig.model_validate(
        {
            "base_url": address,
            "model": "served",
            "tokenizer": str(tokenizer),
            "server": "vllm",
            "sends_text": True,
            "top": TOP,
            "concurrency": 1,
            "attempts": 2,
            "timeout_seconds": 0.4,
            "key_env": KEY_ENV,
        }
        | values
    )
    teacher = open_endpoint(config, where / "spending.jsonl", clock=Clock())
    try:
        cache = where / "cache"
        try:
            teacher = known_teacher(teacher, cache)
        except LookupError:
            teacher, _ = teacher.probed()
        assert teacher.fingerprint is not None
        writer = CacheWriter.open(cache, cache_identity(teacher, ObservedCodec(k=TOP), 1.0, 0))
        (cache / "fingerprint.json").write_text(json.dumps(teacher.fingerprint.as_dict()), encoding="utf-8")
        codec = Observed(TOP, SIZE)
        received = Received(where / "received.bin", codec, TEACHER_DIGEST)
        with Progress(quiet=True).task("capture", 1) as task:
            capture_listed(teacher, texts, writer, received, codec, 1 << 20, task, logging.getLogger("capture").info)
    finally:
        teacher.close()
    return teacher


def forms_of_the_key() -> list[bytes]:
    """The key as it might leak: by its beginning, plain, in base 64 and in hexadecimal."""
    data = KEY.encode()
    return [data[:20], base64.b64encode(data)[:24], data.hex()[:40].encode()]


class Leaks:
    """Where the key was found."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.searched = 0

    def search(self, name: str, data: bytes) -> None:
        """Look into some bytes."""
        self.searched += 1
        if any(form in data for form in forms_of_the_key()):
            self.found.append(name)

    def search_error(self, name: str, error: BaseException) -> None:
        """Look into an error: its words, and all that travels with it and with what caused it."""
        seen: BaseException | None = error
        while seen is not None:
            self.search(f"{name}: error", f"{seen} {seen!r} {vars(seen)}".encode())
            with contextlib.suppress(TypeError, AttributeError, pickle.PicklingError):
                self.search(f"{name}: pickled error", pickle.dumps(seen))
            seen = seen.__cause__ or seen.__context__

    def search_folder(self, name: str, folder: Path) -> None:
        """Look into every file."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.search(f"{name}: {path.relative_to(folder)}", path.read_bytes())


def fault_named(tokenizer: Path, where: Path, fault: str, place: str, leaks: Leaks) -> dict[str, Any]:
    """One faulty server: whether its fault is named, and whether all is there when the fault is gone."""
    at = REQUESTS[place]
    name = f"{fault}/{place}"
    with serving(FakeServer(SIZE, fault, at)) as server:
        if fault == "other model" and place == "first":
            # From the first request on it is simply the model. It is another one for a cache of the model before.
            server.fault = None
            captured(server.address, tokenizer, where, pieces(2))
            server.fault, server.at = fault, server.asked
        said = ""
        try:
            captured(server.address, tokenizer, where, pieces(PIECES))
        except TeacherError as error:
            said = error.what
            leaks.search_error(name, error)
        server.fault = None
        captured(server.address, tokenizer, where, pieces(PIECES))
    whole = set(TeacherCache.open(where / "cache").digests) == {piece.address for piece in pieces(PIECES)}
    leaks.search_folder(name, where)
    return {"fault": fault, "place": place, "named": FAULTS[fault] in said, "whole_afterwards": whole, "said": said}


def work(address: str, tokenizer: str, where: str, count: int) -> None:
    """What is killed."""
    os.environ[KEY_ENV] = KEY
    captured(address, Path(tokenizer), Path(where), pieces(count), check_every=25, timeout_seconds=30, concurrency=2)


def killed(tokenizer: Path, where: Path, kills: int, count: int, seed: int) -> dict[str, Any]:
    """Kill captures at random moments; tokens that were on disk by then and were asked for again."""
    from benchmarks import endpoint

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.endpoint"])
    moments = random.Random(seed)
    texts = {tuple(piece.ids): piece for piece in pieces(count)}
    twice = on_their_way = done_kills = 0
    kept: set[str] = set()
    with serving(FakeServer(SIZE, pause=0.01)) as server:

        def asked_since(start: int) -> list[Piece]:
            return [texts[ids] for body in server.bodies[start:] if (ids := tuple(body["prompt"])) in texts]

        for trial in range(kills + 1):
            start = len(server.bodies)
            before = {piece.address for piece in asked_since(0)} - kept
            if trial < kills:
                words = (server.address, str(tokenizer), str(where), count)
                child = context.Process(target=endpoint.work, args=words, daemon=True)
                child.start()
                until = time.monotonic() + 120
                while len(server.bodies) == start and child.is_alive() and time.monotonic() < until:
                    time.sleep(0.001)
                time.sleep(moments.uniform(0, LONGEST_SECONDS))
                if child.is_alive():
                    child.kill()
                    done_kills += 1
                child.join()
                time.sleep(0.05)  # what the server still has in its hands
            else:
                captured(server.address, tokenizer, where, pieces(count), timeout_seconds=30, concurrency=2)
            again = asked_since(start)
            twice += sum(len(piece.ids) for piece in again if piece.address in kept)
            on_their_way += sum(len(piece.ids) for piece in again if piece.address in before)
            cache = where / "cache"
            kept = set(TeacherCache.open(cache).digests) if (cache / "manifest.json").is_file() else set()
            kept |= set(Received(where / "received.bin", Observed(TOP, SIZE), TEACHER_DIGEST).read())
    times = Counter(piece.address for piece in asked_since(0))
    return {
        "kills": done_kills,
        "paid_twice_tokens": twice,
        "asked_again_for_answers_on_their_way_tokens": on_their_way,
        "pieces": count,
        "whole": len(kept) == count,
        "most_times_a_piece_was_asked_for": max(times.values()),
    }


def caps(tokenizer: Path, where: Path, sizes: list[float]) -> list[dict[str, float]]:
    """Captures with a price of one a token, again and again, and what the server was sent, against the cap."""
    found = []
    for number, size in enumerate(sizes):
        cap = 64 * 2 + size * 20
        price = {"input": 1e6, "output": 1e6, "cap": cap}
        with serving(FakeServer(SIZE)) as server:
            reached = 0
            for _ in range(3):
                try:
                    captured(server.address, tokenizer, where / str(number), pieces(20), price=price, concurrency=3)
                except CapReached:
                    reached += 1
            used = sum(len(body["prompt"]) + 1 for body in server.bodies)
        found.append({"cap": cap, "used": used, "times_stopped": reached})
    return found


def differences(gguf: Path, text: str, folder: Path) -> dict[str, float | None]:
    """Largest differences of log-probabilities on the 20 most probable ids, nats; of the engine here, and of PyTorch."""
    llama_server = importlib.import_module("tests.teachers.served").llama_server
    loaded = load_teacher(GgufTeacher(path=str(gguf)), "cpu", torch.float32)
    loaded.tokenizer.save_pretrained(folder)
    loaded.model.config.save_pretrained(folder)
    ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    with llama_server(gguf) as address:
        teacher = open_endpoint(
            EndpointConfig(
                base_url=address, model="served", tokenizer=str(folder), sends_text=True, top=LISTED, concurrency=1
            )
        )
        signal = teacher.server.score(ids, "a text")
        teacher.close()
    harmless = int(loaded.tokenizer("a", add_special_tokens=False)["input_ids"][-1])
    wanted = {"max_tokens": 1, "temperature": 0, "logprobs": 4 * LISTED, "n_probs": 4 * LISTED}
    mine: list[float] = []
    unlisted = 0
    with Engine(gguf, EngineOptions(context=512)) as engine:
        for length in range(1, len(ids)):
            body = {"prompt": ids[:length], "cache_prompt": True, "logit_bias": [[harmless, 1e6]], **wanted}
            listed = engine.complete(body)["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            values = {int(entry["id"]): float(entry["logprob"]) for entry in listed}
            theirs = dict(zip(signal.ids[length - 1].tolist(), signal.logprobs[length - 1].tolist(), strict=True))
            mine += [abs(value - values[token]) for token, value in theirs.items() if token in values]
            unlisted += len(theirs.keys() - values.keys())
    with torch.inference_mode():
        model: Any = loaded.model
        exact = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(1)
    own = (exact.gather(1, signal.ids) - signal.logprobs).abs()
    return {
        # An id of the server's 20 that is not among the engine's 80 has no difference that can be told.
        "engine_max": None if unlisted else max(mine),
        "engine_mean": sum(mine) / len(mine),
        "engine_unlisted": unlisted,
        "pytorch_float32_max": float(own.max()),
        "pytorch_float32_mean": float(own.mean()),
        "positions": len(signal),
    }


def tiny_gguf(folder: Path) -> Path:
    """A tiny Llama of random weights."""
    from stillroom.formats.gguf_file import write_gguf
    from tests.tiny_models import tiny_model

    write_gguf(tiny_model("llama", folder / "teacher"), folder / "teacher.gguf", "F32", name="tiny", licence="MIT")
    return folder / "teacher.gguf"


def main() -> None:
    """Run the checks, and write the figures."""
    from tests.tiny_models import tiny_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    os.environ[KEY_ENV] = KEY
    leaks = Leaks()
    shown, log = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = tiny_model("llama", folder / "tokenizer", layers=1, hidden=16)
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            faults = [
                fault_named(tokenizer, folder / f"fault-{number}-{place}", fault, place, leaks)
                for number, fault in enumerate(FAULTS)
                for place in (("middle",) if quick else REQUESTS)
            ]
            capped = caps(tokenizer, folder / "caps", [0.5, 3.5, 100] if quick else [0, 0.5, 1, 3.5, 7, 10.25, 100])
        kills = killed(tokenizer, folder / "kills", 3 if quick else KILLS, 60 if quick else KILLED_PIECES, seed=0)
        logging.getLogger().removeHandler(handler)
        leaks.search_folder("all files", folder)
        leaks.search("what was shown", shown.getvalue().encode())
        leaks.search("logs", log.getvalue().encode())
        (folder / "served").mkdir()
        gguf = tiny_gguf(folder / "served") if quick else gguf_path(material.TEACHER.path)
        found = differences(gguf, TEXT[:160] if quick else TEXT, folder / "served-tokenizer")
    figures = {
        "max_logprob_difference": found["engine_max"],
        "faults_named": sum(fault["named"] and fault["whole_afterwards"] for fault in faults),
        "faults": len(faults),
        "kills": kills["kills"],
        "paid_twice_tokens": kills["paid_twice_tokens"],
        "cap_exceeded": sum(entry["used"] > entry["cap"] for entry in capped),
        "secret_leaks": len(leaks.found),
    }
    details = {
        "differences": found,
        "faults": faults,
        "kills": kills,
        "caps": capped,
        "secrets": {"searched": leaks.searched, "logged_characters": len(log.getvalue()), "found": leaks.found},
    }
    report.write(figures, details, arguments.json)


if __name__ == "__main__":
    main()
