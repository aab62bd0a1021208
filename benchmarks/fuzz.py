"""Fuzzes every parser of models, recipes and terms with mutations of valid files: only Stillroom's own errors may come out.

Run as ``.venv/bin/python -m benchmarks.fuzz [--inputs 200000] [--parser gguf] --json FILE``. Mutations know the formats: they
change lengths, counts, types and offsets, double and move whole entries, and splice valid files, besides flipping bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks import _model
from benchmarks.budget import own_peak_bytes
from benchmarks.report import write
from stillroom.core.errors import StillroomError
from stillroom.inspection import gguf_header, onnx_graph, safetensors_header
from stillroom.recipe.reading import parse_recipe
from stillroom.terms.table import Permission, Rows, parse_terms

NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    31,
    32,
    63,
    64,
    255,
    1 << 15,
    (1 << 16) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
WORDS = (
    "null",
    "true",
    "~",
    "-1",
    "1e999",
    ".nan",
    ".inf",
    "0x7fffffffffffffff",
    "9" * 400,
    "''",
    "[]",
    "{}",
    "[[[[]]]]",
    "&a",
    "*a",
    "!!python/object:os.system",
    "!!binary aGk=",
    "!!set {a}",
    "2026-11-24",
    "2026-99-99",
    "<<: *a",
    "? a",
    "---",
    "...",
    "|",
    ">",
    "%TAG ! x",
    "\x00",
    "\ufeff",
    "\u2028",
    "\ud800",
    "\t",
    "a: b: c",
    "- - -",
    "#",
    "@",
    "`",
    "1:2:3",
    "=",
    "<<",
    "0o17",
    "\U0001f600",
)
JSON_WORDS = (
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b"1" * 400,
    b"1" * 5000,
    b"{}",
    b"[]",
    b"[" * 3000,
    b'"\\ud800"',
    b'"\\u0000"',
    b"\xff",
    b"true",
    b"18446744073709551616",
    b"0.5",
    b'"a.weight"',
    b'"__metadata__"',
    b"{" * 50,
    b",",
    b":",
    b'"',
)


MOST_GROWTH = 256 << 20
"""Bytes that the process may grow by while all inputs pass through."""


@dataclass(frozen=True)
class Parser:
    """A parser, valid inputs, and how they are mutated."""

    parse: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    mutate: Callable[[random.Random, bytes, tuple[bytes, ...]], bytes]


def fuzz(inputs: int, seed: int = 0, only: str | None = None) -> dict[str, Any]:
    """Throw mutated inputs at every parser of this module; see :func:`throw`."""
    return throw(parsers(), inputs, seed, only)


def throw(targets: dict[str, Parser], inputs: int, seed: int = 0, only: str | None = None) -> dict[str, Any]:
    """Throw mutated inputs at parsers.

    Args:
        targets: Parsers by name.
        inputs: How many for each parser.
        seed: Of the mutations; the same seed gives the same inputs.
        only: One parser by name.

    Returns:
        ``inputs`` (for each parser), ``escapes`` (errors that are not Stillroom's, and memory past :data:`MOST_GROWTH`, of one
        parser or of all) in all, and under ``parsers`` the same for each, with the share that was accepted, memory gained
        in bytes, seconds and up to five examples of escapes.
    """
    results = {name: _fuzz(name, parser, inputs, seed) for name, parser in targets.items() if only in (None, name)}
    gained = sum(result["memory_gained_bytes"] for result in results.values())
    return {
        "inputs": inputs,
        "escapes": sum(result["escapes"] for result in results.values()) + (gained > MOST_GROWTH),
        "memory_gained_bytes": gained,
        "parsers": results,
    }


def _fuzz(name: str, parser: Parser, inputs: int, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{name}:{seed}")
    outcomes: Counter[str] = Counter()
    examples: list[dict[str, str]] = []
    for valid in parser.seeds:
        parser.parse(valid)  # A seed that is refused would make the rest worthless.
    before = own_peak_bytes()
    started = time.monotonic()
    for _ in range(inputs):
        data = parser.mutate(rng, rng.choice(parser.seeds), parser.seeds)
        try:
            parser.parse(data)
            outcomes["accepted"] += 1
        except StillroomError as error:
            outcomes["refused"] += 1
            if len(str(error)) > 4000:
                outcomes["endless message"] += 1
        except (KeyboardInterrupt, SystemExit):
            raise  # the benchmark is ended, not the parser wrong
        except BaseException as error:
            outcomes["escaped"] += 1
            if len(examples) < 5:
                examples.append({"error": f"{type(error).__name__}: {str(error)[:200]}", "input": data[:4000].hex()})
    gained = own_peak_bytes() - before
    return {
        "inputs": inputs,
        "escapes": outcomes["escaped"] + outcomes["endless message"] + (gained > MOST_GROWTH),
        "accepted": outcomes["accepted"],
        "refused": outcomes["refused"],
        "memory_gained_bytes": gained,
        "seconds": round(time.monotonic() - started, 1),
        "examples": examples,
    }


def parsers() -> dict[str, Parser]:
    """Every parser of this module, by name."""
    return {
        "gguf": Parser(gguf_header.parse_bytes, _gguf_seeds(), mutate_gguf),
        "safetensors": Parser(safetensors_header.parse_bytes, _safetensors_seeds(), mutate_safetensors),
        "onnx": Parser(onnx_graph.parse_bytes, _onnx_seeds(), mutate_onnx),
        "recipe": Parser(
            lambda data: parse_recipe(data.decode("utf-8", "surrogateescape")), _recipe_seeds(), mutate_yaml
        ),
        "terms": Parser(_parse_terms, _terms_seeds(), mutate_yaml),
    }


def _parse_terms(data: bytes) -> object:
    model = Permission if b"granted_by" in data else Rows
    return parse_terms(data, model, "terms")


def mutate_bytes(rng: random.Random, data: bytes, seeds: tuple[bytes, ...]) -> bytes:
    """Changes that know no format: flips, cuts, insertions, doublings, splices."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not found:
            break
        at = rng.randrange(len(found))
        length = rng.choice((1, 2, 4, 8, 16, 64))
        match rng.randrange(7):
            case 0:
                found[at] ^= 1 << rng.randrange(8)
            case 1:
                found[at] = rng.randrange(256)
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = rng.randbytes(length)
            case 4:
                found[at:at] = found[at : at + length]
            case 5:
                del found[at:]
            case 6:
                other = rng.choice(seeds)
                cut = rng.randrange(len(other))
                found[at:] = other[cut:]
    return bytes(found)


def mutate_gguf(rng: random.Random, data: bytes, seeds: tuple[bytes, ...]) -> bytes:
    """Numbers of four and eight bytes are exchanged, and whole files rebuilt from mutated entries."""
    choice = rng.random()
    if choice < 0.3:
        return mutate_bytes(rng, data, seeds)
    if choice < 0.7:
        found = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            form, size = rng.choice((("<I", 4), ("<Q", 8)))
            at = rng.randrange(4, max(5, len(found) - size))
            value = rng.choice(NUMBERS) if rng.random() < 0.7 else len(found) + rng.randrange(-64, 64)
            struct.pack_into(form, found, at, value & ((1 << 8 * size) - 1)) if at + size <= len(found) else None
        return bytes(found)
    keys = [_gguf_key(rng) for _ in range(rng.randrange(6))] + rng.sample(_model.plain_keys(), rng.randrange(6))
    tensors = [_gguf_tensor(rng) for _ in range(rng.randrange(4))]
    rng.shuffle(keys)
    counts = (len(tensors), len(keys)) if rng.random() < 0.8 else (rng.choice(NUMBERS), rng.choice(NUMBERS))
    return _model.gguf(keys, tensors, counts=counts, data=bytes(rng.choice((0, 32, 64, 256))))


def _gguf_key(rng: random.Random) -> bytes:
    name = rng.choice(("general.alignment", "general.license", "tokenizer.chat_template", "x", "y", "z", ""))
    kind = rng.randrange(14)
    if kind == _model.STRING:
        value = _model.text(rng.randbytes(rng.randrange(20)) if rng.random() < 0.5 else "words")
    elif kind == _model.ARRAY:
        value = struct.pack("<IQ", rng.randrange(14), rng.choice((0, 1, 2, 3, *NUMBERS))) + rng.randbytes(
            rng.randrange(64)
        )
    else:
        value = rng.randbytes(rng.choice((1, 2, 4, 8)))
    return _model.key(name, kind, value)


def _gguf_tensor(rng: random.Random) -> bytes:
    shape = tuple(rng.choice((0, 1, 4, 32, 256, *NUMBERS)) for _ in range(rng.randrange(6)))
    return _model.tensor(rng.choice("abc"), shape, rng.choice((0, 1, 8, 12, 39, 99)), rng.choice((0, 32, 64, *NUMBERS)))


def mutate_safetensors(rng: random.Random, data: bytes, seeds: tuple[bytes, ...]) -> bytes:
    """The header is changed as JSON and as bytes, and its length is then right or wrong."""
    if rng.random() < 0.25:
        return mutate_bytes(rng, data, seeds)
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.5:
        value = json.loads(header)
        for _ in range(rng.choice((1, 1, 2, 3))):
            _mutate_entry(rng, value)
        header = json.dumps(value).encode()
    else:
        found = bytearray(header)
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(found))
            found[at : at + rng.choice((0, 1, 4))] = rng.choice(JSON_WORDS)
        header = bytes(found)
    header += b" " * (-len(header) % 8)
    claimed = len(header) if rng.random() < 0.85 else rng.choice(NUMBERS)
    return struct.pack("<Q", claimed) + header + rest


def _mutate_entry(rng: random.Random, value: dict[str, Any]) -> None:
    name = rng.choice([*value, "new"])
    entry = value.setdefault(name, {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]})
    odd: Any = rng.choice((None, -1, 0.5, "F32", [], {}, True, 1 << 64, [1, [2]], *NUMBERS))
    if isinstance(entry, dict) and entry and rng.random() < 0.8:
        key = rng.choice(list(entry))
        if isinstance(entry[key], list) and entry[key] and rng.random() < 0.7:
            entry[key][rng.randrange(len(entry[key]))] = odd
        else:
            entry[key] = odd
    else:
        value[name] = odd


def mutate_onnx(rng: random.Random, data: bytes, seeds: tuple[bytes, ...]) -> bytes:
    """Numbers and places are exchanged, messages are put into messages, and bytes are flipped."""
    choice = rng.random()
    if choice < 0.4:
        return mutate_bytes(rng, data, seeds)
    if choice < 0.7:
        place = rng.choice((None, "", "..", "../x", "/x", "x" * 300, "model.onnx.data", "pyproject.toml"))
        return _model.onnx(place, rng.choice((0, 8, *NUMBERS)), rng.choice((0, 16, *NUMBERS)), rng.randbytes(2))
    message = rng.choice(seeds)
    for _ in range(rng.choice((1, 2, 30))):
        message = _model.proto(rng.choice((1, 2, 5, 6, 7, 10, 11, 13, 15, 20, 22, 25)), message)
    return data + message if rng.random() < 0.5 else _model.proto(7, message)


def mutate_yaml(rng: random.Random, data: bytes, seeds: tuple[bytes, ...]) -> bytes:
    """Lines are doubled, moved, indented and cut, values are exchanged, and bytes are flipped now and then."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, data, seeds)
    lines = data.decode().split("\n")
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        line = lines[at]
        match rng.randrange(7):
            case 0:
                lines.insert(at, line)
            case 1:
                lines[at] = " " * rng.randrange(6) + line
            case 2:
                lines[at] = line.partition(":")[0] + ": " + rng.choice(WORDS)
            case 3:
                lines[at] = line.replace(" ", rng.choice(WORDS), 1)
            case 4:
                del lines[at]
            case 5:
                lines[at] = rng.choice(rng.choice(seeds).decode().split("\n"))
            case 6:
                cut = rng.randrange(len(line) + 1)
                lines[at] = line[:cut] + rng.choice(WORDS) + line[cut:]
        if not lines:
            break
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _gguf_seeds() -> tuple[bytes, ...]:
    key, text = _model.key, _model.text
    nested = key(
        "nested", 9, struct.pack("<IQ", 9, 2) + struct.pack("<IQ", 0, 2) + b"ab" + struct.pack("<IQ", 8, 1) + text("c")
    )
    every = [
        key(f"k{kind}", kind, bytes(size)) for kind, size in ((0, 1), (2, 2), (5, 4), (6, 4), (7, 1), (10, 8), (12, 8))
    ]
    quantised = [_model.tensor("q", (256, 2), 12), _model.tensor("w", (32, 4), 8, 288)]
    return (
        _model.gguf(),
        _model.gguf([*_model.plain_keys(), nested, *every]),
        _model.gguf(tensors=quantised, data=bytes(288 + 136)),
        _model.gguf([], [], data=b""),
    )


def _safetensors_seeds() -> tuple[bytes, ...]:
    metadata = {
        "__metadata__": {"format": "pt"},
        "x": {"dtype": "BF16", "shape": [2, 3, 1], "data_offsets": [0, 12]},
        "empty": {"dtype": "I64", "shape": [0], "data_offsets": [12, 12]},
        "flag": {"dtype": "BOOL", "shape": [], "data_offsets": [12, 13]},
    }
    return _model.safetensors(), _model.safetensors(metadata, bytes(13)), _model.safetensors({}, b"")


def _onnx_seeds() -> tuple[bytes, ...]:
    inner = _model.proto(5, _model.proto(6, _model.proto(5, _model.proto(8, "w"))))
    return _model.onnx(None), _model.proto(1, 10) + _model.proto(7, _model.proto(1, inner))


def _recipe_seeds() -> tuple[bytes, ...]:
    return (
        b"name: a\ncorpus:\n  sources:\n    - kind: python_docs\nteacher:\n  kind: gguf\n  path: b.gguf\n",
        b"name: a\nseed: 3\ncorpus:\n  sources:\n    - {kind: jsonl, path: c, text_key: t}\n  sequence_length: 64\n"
        b"teacher: {kind: huggingface, name: d}\nstudent:\n  kind: fresh\n  config: {num_hidden_layers: 2}\n",
        b"name: a\ncorpus: {sources: [{kind: text, path: &p x}]}\nteacher: {kind: gguf, path: *p}\n"
        b"terms:\n  decisions:\n    - kind: own\n      decided_by: Jane Doe\n      decided_at: 2026-11-24T00:00:00Z\n",
    )


def _terms_seeds() -> tuple[bytes, ...]:
    return (
        b"format: 1\nversion: '1'\ndate: 2026-11-24\nrows:\n- id: a\n  title: A licence\n  kind: licence\n  licences: [aa]\n"
        b"  outputs: allowed\n  clause: none\n  source: here\n  read: 2026-11\n  confidence: primary\n"
        b"  obligations: {notices: [Built with A], licences: [AA]}\n  text: {begins: [a licence]}\n",
        b"format: 1\ngranted_by: Somebody\ngranted_to: Me\ngranted_on: 2026-01-01\ncovers: [aa]\nscope: all\n"
        b"purpose: commercial\ntext: letter.txt\ntext_sha256: " + b"a" * 64 + b"\n",
    )


def command(title: str | None, targets: dict[str, Parser]) -> None:
    """Fuzz as the command line says, print and write."""
    arguments = argparse.ArgumentParser(description=title, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--inputs", type=int, default=200_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--parser", choices=sorted(targets), help="one parser alone")
    options = arguments.parse_args()
    found = throw(targets, 5_000 if options.quick else options.inputs, options.seed, options.parser)
    write({"fuzz_inputs": found["inputs"], "fuzz_escapes": found["escapes"]}, found["parsers"], options.json)


if __name__ == "__main__":
    command(__doc__, parsers())
