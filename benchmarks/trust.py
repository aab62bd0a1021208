"""What trust costs and whether it holds: verification against a bare digest, revocation in a family of a thousand, fuzzing.

    .venv/bin/python -m benchmarks.trust [--quick] [--json FILE]

`--quick` verifies 256 MiB in place of 1 GiB and gives each parser 2,000 inputs in place of 200,000.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from attacks.workshop import workshop
from benchmarks.fuzz import fuzz
from benchmarks.fuzz_package import fuzz as fuzz_package
from benchmarks.report import write
from stillroom.core import files
from stillroom.verification.closed import parse_json
from stillroom.verification.documents import Revocation
from stillroom.verification.lineage import Ancestor, Identity, index_of, inherit, reached_by
from stillroom.verification.manifest import CHUNK, OUTSIDE, walk

REPEATS = 5
FAMILY, GENERATIONS = 1000, 5
BUFFER = 1 << 20


def speed(folder: Path, size: int) -> dict[str, Any]:
    """Verify a package of ``size`` bytes, and digest the same files with nothing else, in turns."""
    shop = workshop(folder)
    weights = next((shop.package / "weights").iterdir())
    _grow(weights, size)
    shop.sign()
    names = [name for name in walk(shop.package) if name not in OUTSIDE]
    pairs = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        bare(shop.package, names)
        digested = time.perf_counter()
        verified = shop.verify()
        done = time.perf_counter()
        verified.close()
        pairs.append((digested - started, done - digested))
    pairs = pairs[1:]  # the first round brings the files into memory
    return {
        "bytes": size,
        "bare_seconds": statistics.median(pair[0] for pair in pairs),
        "verify_seconds": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[0] / pair[1] for pair in pairs),
        "ratios": [round(pair[0] / pair[1], 4) for pair in pairs],
        "cores": os.cpu_count(),
    }


def bare(folder: Path, names: list[str]) -> None:
    """SHA-256 of every file, large ones in pieces, on all cores: the least that any check of all bytes takes."""

    def digest(task: tuple[Path, int, int]) -> str:
        path, start, end = task
        hasher = sha256()
        buffer = memoryview(bytearray(BUFFER))
        with open(path, "rb", buffering=0) as stream:
            stream.seek(start)
            left = end - start
            while left > 0:
                count = stream.readinto(buffer[: min(BUFFER, left)])
                hasher.update(buffer[:count])
                left -= count
        return hasher.hexdigest()

    tasks = []
    for name in names:
        size = (folder / name).stat().st_size
        tasks += [(folder / name, start, min(start + CHUNK, size)) for start in range(0, max(size, 1), CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(digest, tasks))


def family(seed: int = 0) -> dict[str, Any]:
    """Revoke a teacher in a family of simulated packages and see whether exactly its descendants are refused.

    Packages know of each other only what their provenance says. The truth comes from the family tree.
    """
    random_ = random.Random(seed)

    def digest(*parts: str | int) -> str:
        return files.digest_bytes(repr(parts).encode())

    founders = [digest("founder", number) for number in range(10)]
    parents: dict[str, list[str]] = {founder: [] for founder in founders}
    lineage: dict[str, tuple[Ancestor, ...]] = {}
    layers = [founders]
    for generation in range(1, GENERATIONS + 1):
        layer = []
        for number in range(FAMILY // GENERATIONS):
            student = digest("student", generation, number)
            teachers = random_.sample(layers[-1], random_.choice((1, 1, 1, 2)))
            parents[student] = teachers
            direct = [Ancestor(kind="teacher", name=teacher[:8], digest=teacher, generation=1) for teacher in teachers]
            lineage[student] = inherit(direct, [lineage.get(teacher, ()) for teacher in teachers])
            layer.append(student)
        layers.append(layer)
    documents = {
        student: json.dumps([ancestor.model_dump() for ancestor in ancestors]).encode()
        for student, ancestors in lineage.items()
    }
    exact, seconds, reached = True, 0.0, []
    unrelated = [_revocation(digest("unrelated", number), number + 2) for number in range(10_000)]
    for layer in layers[:-1]:
        teacher = max(layer, key=lambda one: len(_descendants(parents, one)))
        truth = _descendants(parents, teacher)
        started = time.perf_counter()
        index = index_of([_revocation(teacher, 1), *unrelated])
        refused = set()
        for student, document in documents.items():
            ancestors = tuple(Ancestor.model_validate(item) for item in _tuples(parse_json(document, "provenance")))
            if reached_by(Identity(package=student, ancestors=ancestors), index) is not None:
                refused.add(student)
        seconds = max(seconds, time.perf_counter() - started)
        exact &= refused == truth
        reached.append(len(truth))
    return {"packages": len(documents), "exact": exact, "seconds": seconds, "descendants": reached, "list": 10_001}


def fuzzing(inputs: int) -> dict[str, Any]:
    """Every parser of untrusted bytes, of packages and of models from elsewhere."""
    return {"package": fuzz_package(inputs), "intake": fuzz(inputs)}


def _grow(path: Path, size: int) -> None:
    """A GGUF file of about ``size`` bytes of noise."""
    from gguf import GGUFWriter

    path.unlink()
    writer = GGUFWriter(path, "llama")
    writer.add_name("large")
    block = np.random.default_rng(0).integers(0, 255, 64 << 20, dtype=np.uint8).view(np.float32).reshape(4096, -1)
    for number in range(size >> 26):
        writer.add_tensor(f"blk.{number}.ffn_up.weight", block)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _revocation(value: str, serial: int) -> Revocation:
    return Revocation.model_validate_json(
        json.dumps({"kind": "teacher", "value": value, "reason": "withdrawn", "date": "2026-11-24", "serial": serial})
    )


def _descendants(parents: dict[str, list[str]], teacher: str) -> set[str]:
    found: set[str] = set()
    for student, teachers in parents.items():  # parents come before their students
        if teacher in teachers or found & set(teachers):
            found.add(student)
    return found


def _tuples(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item | {"aliases": tuple(item["aliases"])} for item in items]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("speed", "family", "fuzz"), help="one part alone")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    details: dict[str, Any] = {}
    if options.only in (None, "speed"):
        folder = Path(tempfile.mkdtemp())
        try:
            details["speed"] = speed(folder, (256 if options.quick else 1024) << 20)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        figures["verify_over_digest"] = round(details["speed"]["ratio"], 4)
    if options.only in (None, "family"):
        details["family"] = family()
        figures["revoked_descendants_exact"] = details["family"]["exact"]
        figures["revocation_seconds"] = round(details["family"]["seconds"], 4)
    if options.only in (None, "fuzz"):
        details["fuzz"] = fuzzing(2_000 if options.quick else 200_000)
        figures["fuzz_inputs"] = min(part["inputs"] for part in details["fuzz"].values())
        figures["fuzz_escapes"] = sum(part["escapes"] for part in details["fuzz"].values())
    write(figures, details, options.json)


if __name__ == "__main__":
    main()
