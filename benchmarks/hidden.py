"""The codec `hidden`: whether its distribution is the teacher's to the bit, what it takes, and what int8 loses.

    .venv/bin/python -m benchmarks.hidden [--quick] [--json FILE]

SmolLM2-135M-Instruct in bfloat16 is captured on Python's own documentation as the stage does it, with 16 and with 8 bits, and
read again. ``bit_equal``: every log-probability of the 16-bit cache is that of a new pass of the teacher, in its own output
layer's steps. ``bytes_per_position`` is of the shards, ``bytes_per_position_all`` with the output layer that a cache holds
once. ``int8_kl`` is the mean KL(teacher ‖ read from 8 bits), nats a position. ``--quick`` takes two sequences.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import material, report
from stillroom.core.progress import Progress
from stillroom.corpus.sequences import Sequences
from stillroom.recipe.capture import HiddenCodec
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.cache.writer import CacheWriter
from stillroom.signals.signal import DenseSignal
from stillroom.teachers.capture import cache_identity, capture
from stillroom.teachers.local import LocalTeacher

LENGTH, TOKENS = 256, 8192
QUICK_LENGTH, QUICK_TOKENS = 64, 128


def cached(teacher: LocalTeacher, text: Sequences, bits: Literal[16, 8], folder: Path) -> tuple[TeacherCache, float]:
    """A cache of the text, and the seconds it took."""
    writer = CacheWriter.open(folder, cache_identity(teacher, HiddenCodec(bits=bits), 1.0, 0))
    begun = time.monotonic()
    with Progress(quiet=True).task("capture", total=text.length * len(text)) as task:
        capture(teacher, text, writer, 1.0, 2048, 16_384, task)
    return TeacherCache.open(folder), time.monotonic() - begun


def live(teacher: LocalTeacher, text: Sequences) -> dict[str, torch.Tensor]:
    """Log-probabilities of a pass of the teacher of its own, sequence by sequence, [N, V]."""
    batch = max(1, 2048 // text.length)
    found = {}
    for start in range(0, len(text), batch):
        indices = list(range(start, min(start + batch, len(text))))
        for index, scores in teacher.score(text, indices):
            found[text.digests[index]] = torch.cat([chunk.log_softmax(1) for chunk in scores])
    return found


def read(cache: TeacherCache, digest: str) -> torch.Tensor:
    """Log-probabilities [N, V] of one sequence."""
    signal = cache.read([digest])[0]
    assert isinstance(signal, DenseSignal)
    return signal.logprobs


def shard_bytes(folder: Path) -> int:
    """Bytes of all files but the output layer and the manifest."""
    cache = TeacherCache.open(folder)
    return sum((folder / entry.name).stat().st_size for entry in cache.manifest.shards)


def main() -> None:
    """Capture, read and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    length, tokens = (QUICK_LENGTH, QUICK_TOKENS) if arguments.quick else (LENGTH, TOKENS)
    teacher = LocalTeacher(material.teacher(torch.bfloat16))
    text, _ = material.corpus(teacher.loaded, length, tokens, length)
    exact = live(teacher, text)
    positions = sum(map(len, exact.values()))
    with tempfile.TemporaryDirectory() as temporary:
        folders = {16: Path(temporary) / "16", 8: Path(temporary) / "8"}
        whole, seconds = cached(teacher, text, 16, folders[16])
        small, small_seconds = cached(teacher, text, 8, folders[8])
        different = {digest: int((read(whole, digest) != said).sum()) for digest, said in exact.items()}
        furthest = max(float((read(whole, digest) - said).abs().max()) for digest, said in exact.items())
        kls: list[float] = []
        agree = 0
        for digest, said in exact.items():
            lossy = read(small, digest)
            kls += (said.exp().double() * (said.double() - lossy.double())).sum(1).tolist()
            agree += int((said.argmax(1) == lossy.argmax(1)).sum())
        bytes_of: dict[int, dict[str, Any]] = {
            bits: {"shards": shard_bytes(folders[bits]) / positions, "all": cache.bytes_per_position}
            for bits, cache in ((16, whole), (8, small))
        }
    figures = {
        "bit_equal": not any(different.values()),
        "bytes_per_position": bytes_of[16]["shards"],
        "bytes_per_position_all": bytes_of[16]["all"],
        "int8_bytes_per_position": bytes_of[8]["shards"],
        "int8_kl": statistics.mean(kls),
    }
    details = {
        "positions": positions,
        "different_numbers": sum(different.values()),
        "furthest": furthest,
        "int8_largest_kl": max(kls),
        "int8_same_best": agree / positions,
        "capture_seconds": {"16": seconds, "8": small_seconds},
        "length": length,
    }
    report.write(figures, details, arguments.json)


if __name__ == "__main__":
    main()
