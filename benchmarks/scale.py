"""What grows with corpus and cache, and what does not: opening, starting, building; and the step beside an older commit.

    .venv/bin/python -m benchmarks.scale [--quick] [--only cache|start|build|manifest|step] [--json FILE]

- ``cache``: a cache of 10^6 sequences (each of one position: it is the number that counts) is put as units, sealed, and opened
  in a new process: ``open_seconds``, ``open_bytes`` (growth of the resident memory, mapped pages included).
- ``start``: 10^8 random tokens are gathered and saved (``gather_bytes_per_token``: peak of the memory that is not mapped from
  files, per token), and a new process trains on them to its first step: ``start_seconds`` until then, without the imports and
  without making the student; ``resident_bytes_per_token``. The student is tiny and learns from the text.
- ``build``: the stage's own code on JSONL of two sizes: ``build_bytes_per_token`` is the growth of the peak between the two.
- ``manifest``: bytes that are written to manifest and journal by a capture of n and of 2n shards:
  ``manifest_bytes_doubled`` is their ratio; 2 is linear, 4 would be quadratic.
- ``step``: ``step_over_before``: CPU seconds of a training step of commit b8e6c2e (its files, out of the history) over those of
  this tree, in pairs, with a 95 % interval; null with the reason where it cannot be had. The student has 4 layers of width 256
  and 4,096 ids.

``--quick`` takes 10^5 sequences, 10^6 tokens and two pairs. Wall times say little on a machine that is busy with other things:
``load`` stands beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import report

LENGTH, ROWS = 512, 300
PARTS = ("cache", "start", "build", "manifest", "step")


class Peak:
    """The largest memory of this process, sampled; mapped files do not count, because the system takes them back."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self.begun = anonymous()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self.bytes = max(self.bytes, anonymous() - self.begun)
            self._stop.wait(0.02)


def anonymous() -> int:
    """Resident memory that is not mapped from a file."""
    info = psutil.Process().memory_info()
    return int(info.rss - info.shared)


def make_cache(folder: Path, sequences: int, per_shard: int) -> None:
    """A sealed cache of so many sequences, each of one position, through the code that captures units use."""
    from stillroom.core.files import digest_bytes
    from stillroom.core.store import LocalStore
    from stillroom.recipe.capture import DenseCodec
    from stillroom.signals.cache import parts
    from stillroom.signals.cache.shard import Encoded, entry_of, shard_bytes

    store = LocalStore(folder)
    parts.begin(store, identity(DenseCodec(), 2))
    random = np.random.default_rng(0)
    for number in range(-(-sequences // per_shard)):
        count = min(per_shard, sequences - number * per_shard)
        digests = random.bytes(32 * count)
        encoded = [Encoded(digests[32 * i : 32 * i + 32].hex(), 1, 0.5, b"\0\0\0\0") for i in range(count)]
        data, name = shard_bytes(encoded), digest_bytes(str(number).encode())
        entry = entry_of(parts.shard_key(name), data, encoded)
        parts.put_part(store, name, data, parts.PartNote(**entry.model_dump(exclude={"name"}), device="cpu"))
    sealed = parts.seal(store)
    assert not sealed.damages


def identity(codec: Any, rows: int) -> Any:
    """A cache's identity of no real teacher."""
    from stillroom.signals.cache.identity import CacheIdentity

    return CacheIdentity(
        teacher_digest="0", tokenizer_digest="0", vocabulary_size=rows, temperature=1.0, codec=codec, seed=0,
        dtype="float32", sequence_length=LENGTH,
    )  # fmt: skip


def child_open(folder: str) -> dict[str, Any]:
    """Open a cache; what it took."""
    from stillroom.signals.cache.reader import TeacherCache

    before, begun = psutil.Process().memory_info().rss, time.perf_counter()
    cache = TeacherCache.open(Path(folder))
    seconds = time.perf_counter() - begun
    return {
        "open_seconds": seconds,
        "open_bytes": psutil.Process().memory_info().rss - before,
        "sequences": len(cache),
    }


def child_gather(folder: str, tokens: str) -> dict[str, Any]:
    """Gather and save random pieces, a training and a validation split."""
    from stillroom.corpus.cutting import Piece
    from stillroom.corpus.pieces import PieceList

    random = np.random.default_rng(0)
    wanted = int(float(tokens))
    begun = time.process_time()
    with Peak() as peak:
        for name, limit in (("validation", 2 * LENGTH), ("train", wanted)):
            gathered = PieceList(LENGTH, 128, False, limit, Path(folder))
            while not gathered.full:
                size = int(random.integers(LENGTH // 2, LENGTH + 1))
                ids = random.integers(0, ROWS, size, dtype=np.uint32)
                learned = np.ones(size, bool)
                gathered.add([Piece(ids, learned, np.ones(size, np.int32), 0, begins=True)], 0)
            gathered.finish().save(Path(folder) / f"{name}.safetensors")
    stored = (Path(folder) / "train.safetensors").stat().st_size
    return {
        "gather_bytes_per_token": peak.bytes / wanted,
        "stored_bytes_per_token": stored / wanted,
        "gather_cpu_seconds": time.process_time() - begun,
    }


class Began(Exception):
    """The first step is done."""


def child_start(folder: str) -> dict[str, Any]:
    """Train on a corpus to the first step."""
    import torch

    from stillroom.core.progress import Progress
    from stillroom.corpus.mapped import open_split
    from stillroom.recipe.capture import DenseCodec
    from stillroom.recipe.training import DistillConfig
    from stillroom.signals.batches import BatchSource
    from stillroom.signals.cache.reader import TeacherCache
    from stillroom.signals.cache.writer import CacheWriter
    from stillroom.signals.vocabulary_map import VocabularyMap
    from stillroom.training.loop import Training
    from tests.tiny_models import make_model

    path = Path(folder)
    model = make_model("llama", rows=ROWS, layers=2, seed=9)
    writer = CacheWriter.open(path / "cache", identity(DenseCodec(), ROWS))
    held = open_split(path / "validation.safetensors").take(2)
    for row, counts in zip(held.addresses, held.counts, strict=True):
        for address, count in zip(row, counts, strict=True):
            writer.add(address, torch.randn(count, ROWS).log_softmax(1))
    writer.close()

    def began(**values: Any) -> None:
        if "loss" in values:
            raise Began

    process = psutil.Process()
    before, begun, cpu = process.memory_info().rss, time.perf_counter(), time.process_time()
    train = open_split(path / "train.safetensors")
    cache = TeacherCache.open(path / "cache")
    vocabulary = VocabularyMap.identity(ROWS)
    (path / "training").mkdir()
    training = Training(
        title="baseline",
        model=model,
        config=DistillConfig(learning_rate=1e-3, batch_tokens=4 * LENGTH, precision="float32"),
        train=BatchSource(train, vocabulary, None),
        validation=BatchSource(held, vocabulary, cache),
        distill=False,
        folder=path / "training",
        seed=0,
        device=torch.device("cpu"),
        used=ROWS,
        progress=Progress(quiet=True),
        event=began,
    )
    with contextlib.suppress(Began):
        training.run()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    grown = process.memory_info().rss - before
    return {
        "start_seconds": seconds,
        "start_cpu_seconds": cpu,
        "resident_bytes_per_token": grown / train.tokens,
        "tokens": train.tokens,
    }


def child_build(folder: str, tokens: str) -> dict[str, Any]:
    """The code of the stage `corpus` on a file of so many tokens, about."""
    from stillroom.core.progress import Progress
    from stillroom.corpus.build import build_corpus
    from stillroom.recipe.corpus import CorpusConfig
    from tests.tiny_models import make_tokenizer

    path = Path(folder) / f"{tokens}.jsonl"
    tokenizer = make_tokenizer("bpe")
    random = np.random.default_rng(1)
    words = [f"w{number}" for number in range(2000)]
    each = 200
    line = " ".join(random.choice(words, each))
    per_document = len(tokenizer(line)["input_ids"])
    with path.open("w") as file:
        for number in range(int(float(tokens)) // per_document):
            file.write(json.dumps({"text": f"{number} " + " ".join(random.choice(words, each))}) + "\n")
    config = CorpusConfig.model_validate(
        {"sources": [{"kind": "jsonl", "path": str(path), "licence": "CC0-1.0"}], "sequence_length": LENGTH}
    )
    with Peak() as peak:
        corpus = build_corpus(config, tokenizer, 0, Progress(quiet=True), Path(folder))
        for name, pieces in corpus.pieces.items():
            pieces.save(Path(folder) / f"{name}.safetensors")
    return {
        "peak_bytes": peak.bytes,
        "tokens": sum(pieces.tokens for pieces in corpus.pieces.values()),
        "documents": corpus.ledger["documents"],
    }


def manifest_bytes(folder: Path, shards: int) -> int:
    """Bytes that go to the manifest and its journal while so many shards are captured."""
    import torch

    from stillroom.core import files
    from stillroom.recipe.capture import DenseCodec
    from stillroom.signals.cache.manifest import JOURNAL, NAME, Manifest
    from stillroom.signals.cache.writer import CacheWriter

    written = 0
    save = Manifest.save

    def counted(self: Manifest, where: Path) -> None:
        nonlocal written
        written += journal()
        save(self, where)
        written += (where / NAME).stat().st_size

    def journal() -> int:
        return (folder / JOURNAL).stat().st_size if (folder / JOURNAL).exists() else 0

    Manifest.save = counted  # type: ignore[assignment, method-assign]
    try:
        writer = CacheWriter.open(folder, identity(DenseCodec(), 2))
        scores = torch.zeros(1, 2).log_softmax(1)
        for number in range(shards):
            writer.add(files.digest_bytes(str(number).encode()), scores)
            writer.flush()
        writer.close()
    finally:
        Manifest.save = save  # type: ignore[method-assign]
    return written + journal()


STEPS = """
import json, statistics, sys, tempfile, time
from pathlib import Path
import torch
from transformers import LlamaConfig, LlamaForCausalLM
try:
    from stillroom.core.progress import Progress
    from stillroom.recipe.capture import ThresholdCodec
    from stillroom.recipe.training import DistillConfig
    from stillroom.signals.batches import BatchSource
    from stillroom.signals.cache.identity import CacheIdentity
    from stillroom.signals.cache.reader import TeacherCache
    from stillroom.signals.cache.writer import CacheWriter
    from stillroom.signals.vocabulary_map import VocabularyMap
    from stillroom.training.loop import Training
except ImportError:
    from stillroom.progress import Progress
    from stillroom.teacher.config import ThresholdCodec
    from stillroom.train.config import DistillConfig
    from stillroom.train.batches import BatchSource
    from stillroom.teacher.cache.identity import CacheIdentity
    from stillroom.teacher.cache.reader import TeacherCache
    from stillroom.teacher.cache.writer import CacheWriter
    from stillroom.student.vocabulary import VocabularyMap
    from stillroom.train.loop import Training
from stillroom.corpus.sequences import Sequences

ROWS, LENGTH, COUNT = 4096, 256, 4 * int(sys.argv[1])
torch.manual_seed(0)
torch.set_num_threads(1)
def text(count):
    segments = torch.zeros(count, LENGTH, dtype=torch.int32)
    return Sequences(torch.randint(ROWS, (count, LENGTH)), segments, torch.ones(count, LENGTH, dtype=torch.bool), segments,
                     torch.ones(count, LENGTH, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder)
    writer = CacheWriter.open(path / "cache", CacheIdentity(teacher_digest="0", tokenizer_digest="0", vocabulary_size=ROWS,
        temperature=1.0, codec=ThresholdCodec(), seed=0, dtype="float32", sequence_length=LENGTH))
    train, held = text(COUNT), text(1)
    for split in (train, held):
        for digest in split.digests:
            writer.add(digest, (4 * torch.randn(LENGTH - 1, ROWS)).log_softmax(1))
    writer.flush()
    cache = TeacherCache.open(path / "cache")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True))
    marks = []
    def event(**values):
        if "loss" in values:
            marks.append(time.process_time())
    (path / "training").mkdir()
    vocabulary = VocabularyMap.identity(ROWS)
    Training(title="distill", model=model, config=DistillConfig(batch_tokens=4 * LENGTH, learning_rate=1e-4,
        precision="float32", checkpoint_seconds=10**6, evaluate_every=10**6), train=BatchSource(train, vocabulary, cache),
        validation=BatchSource(held, vocabulary, cache), distill=True, folder=path / "training", seed=0,
        device=torch.device("cpu"), used=ROWS, progress=Progress(quiet=True), event=event).run()
import stillroom
print(json.dumps([stillroom.__file__, statistics.median(b - a for a, b in zip(marks[1:-1], marks[2:]))]))
"""


def step_pairs(pairs: int, steps: int) -> dict[str, Any]:
    """CPU seconds of a step, of the older commit over this tree's, in pairs."""
    # Not above: the processes whose memory is measured read this file, too.
    from benchmarks.quickstart import Before, NotThere

    root = Path(__file__).parents[1]
    ratios, seconds = [], []
    with tempfile.TemporaryDirectory() as folder:
        before = Before(Path(folder))
        try:
            before.fetch()
            for number in range(pairs):
                both = [("before", before.code), ("now", root)]
                took = {name: _steps(tree, steps) for name, tree in (both if number % 2 else both[::-1])}
                ratios.append(took["before"] / took["now"])
                seconds.append(took)
        except (NotThere, RuntimeError) as error:
            return {"step_over_before": None, "step_over_before_interval": None, "why": str(error)}
    return {
        "step_over_before": statistics.mean(ratios),
        "step_over_before_interval": report.interval(ratios),
        "pairs": seconds,
    }


def _steps(tree: Path, steps: int) -> float:
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, str(steps)],
        env=environment,
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    imported, seconds = json.loads(done.stdout.splitlines()[-1])
    if not Path(imported).is_relative_to(tree):
        raise RuntimeError(f"the package was imported from {imported}, not from {tree}")
    return float(seconds)


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {
    "open": child_open,
    "gather": child_gather,
    "start": child_start,
    "build": child_build,
}


def child(name: str, *arguments: str) -> dict[str, Any]:
    """Do one thing in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--child", name, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"load": round(os.getloadavg()[0], 1)}


def measure(only: str | None, quick: bool, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part's figures."""
    if only in (None, "cache"):
        make_cache(folder / "cache", 10**5 if quick else 10**6, 2000)
        yield "cache", child("open", str(folder / "cache"))
    if only in (None, "start"):
        (folder / "corpus").mkdir()
        gathered = child("gather", str(folder / "corpus"), "1e6" if quick else "1e8")
        yield "start", gathered | child("start", str(folder / "corpus"))
    if only in (None, "build"):
        small, large = (child("build", str(folder), size) for size in (("1e5", "4e5") if quick else ("1e6", "4e6")))
        slope = (large["peak_bytes"] - small["peak_bytes"]) / (large["tokens"] - small["tokens"])
        yield "build", {"build_bytes_per_token": slope, "small": small, "large": large}
    if only in (None, "manifest"):
        count = 150 if quick else 600
        one, two = (manifest_bytes(folder / f"manifest-{n}", n) for n in (count, 2 * count))
        yield "manifest", {"manifest_bytes_doubled": two / one, "manifest_bytes_per_shard": two / (2 * count)}
    if only in (None, "step"):
        yield "step", step_pairs(2 if quick else 10, 12 if quick else 30)


FIGURES = (
    "open_seconds", "open_bytes", "start_seconds", "start_cpu_seconds", "resident_bytes_per_token", "gather_bytes_per_token",
    "stored_bytes_per_token", "build_bytes_per_token", "manifest_bytes_doubled", "manifest_bytes_per_shard",
    "step_over_before", "step_over_before_interval",
)  # fmt: skip


def main() -> None:
    """Read the options, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.stdout.write(json.dumps(CHILDREN[options.child[0]](*options.child[1:])) + "\n")
        return
    details: dict[str, Any] = {"quick": options.quick, "load": os.getloadavg()}
    with tempfile.TemporaryDirectory() as folder:
        figures = report.gather(measure(options.only, options.quick, Path(folder)), FIGURES, details)
    report.write(figures, details, options.json)


if __name__ == "__main__":
    main()
