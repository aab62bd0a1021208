"""Throws damaged documents at every parser of a package and of a repository.

Run as ``.venv/bin/python -m benchmarks.fuzz_package [--inputs 200000] [--parser manifest] --json FILE``. Each input begins as a
document that is right, and is then cut, spliced, flipped, or changed as JSON. A parser may accept it or refuse it with a
Stillroom error; anything else is an escape.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.workshop import workshop
from benchmarks.fuzz import Parser, command, throw
from stillroom.verification.claims import EVALUATION, POLICY, TERMS
from stillroom.verification.client import pinned_keys
from stillroom.verification.closed import parse, parse_json
from stillroom.verification.documents import Memory, Pin, Policy, Reinstatements, Releases, RevocationList
from stillroom.verification.envelope import open_envelope, parse_envelope
from stillroom.verification.manifest import parse_statement
from stillroom.verification.openssf import check_bundle

STRANGE: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 1e308, "", "\x00", "../x", "a" * 5000, [], {}, [[[[]]]], {"": {}}, "0" * 64, "９", "\ud83d\ude00",
)  # fmt: skip

PIECES = (b"{", b"[" * 2000, b'"', b"\\u0000", b"1e999", b"NaN", b"9" * 6000, b",", b"\xff")


def fuzz(inputs: int, seed: int = 0, only: str | None = None) -> dict[str, Any]:
    """Throw damaged documents at every parser of this module; see :func:`benchmarks.fuzz.throw`."""
    return throw(parsers(), inputs, seed, only)


def damage(document: bytes, random_: random.Random) -> bytes:
    """One damaged form of a document."""
    if random_.random() < 0.5:
        try:
            value = json.loads(document)
        except ValueError:
            value = None
        if value is not None:
            _change(value, random_)
            return json.dumps(value).encode("utf-8", "surrogatepass")
    data = bytearray(document)
    for _ in range(random_.choice((1, 1, 2, 8))):
        place = random_.randrange(len(data) + 1)
        kind = random_.randrange(5)
        if kind == 0 and data:
            data[place % len(data)] ^= 1 << random_.randrange(8)
        elif kind == 1:
            del data[place : place + random_.choice((1, 4, 64, 1 << 20))]
        elif kind == 2:
            data[place:place] = random_.randbytes(random_.choice((1, 3, 40)))
        elif kind == 3:
            data[place:place] = random_.choice(PIECES)
        elif data:
            other = random_.randrange(len(data))
            data[place:place] = data[other : other + random_.choice((8, 200))]
    return bytes(data)


def _change(value: Any, random_: random.Random) -> None:
    """Change one place of a JSON value: another value, a missing or a new key, a repeated item."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, item in items:
            places.append((node, key))
            visit(item)

    visit(value)
    if not places:
        return
    for _ in range(random_.choice((1, 1, 2, 4))):
        node, key = random_.choice(places)
        kind = random_.randrange(4)
        if isinstance(node, dict) and kind == 0:
            node.pop(key, None)
        elif isinstance(node, dict) and kind == 1:
            node[random_.choice(("extra", "", "__class__", key + " "))] = random_.choice(STRANGE)
        elif isinstance(node, list) and kind == 0 and node:
            node.append(copy.copy(node[0]))
        elif isinstance(node, dict) or (isinstance(node, list) and isinstance(key, int) and key < len(node)):
            node[key] = random_.choice(STRANGE)


def _read_list(kind: type[RevocationList | Reinstatements | Releases], data: bytes) -> object:
    return parse(kind, data, "fuzz")


def parsers() -> dict[str, Parser]:
    """Every parser with a document that it accepts."""
    with tempfile.TemporaryDirectory() as folder:
        shop = workshop(Path(folder))
        shop.repository().revoke("dataset", "0" * 64, "for the list")
        with shop.verify() as verified:
            manifest = verified.manifest
        keys = [shop.ring.public_key(name) for name in shop.ring.names("release")]
        envelope = (shop.package / "package.dsse").read_bytes()
        bundle = (shop.package / "package.oms.sig").read_bytes()
        policy = (shop.package / POLICY).read_bytes()
        pin = (shop.repo / "trust.json").read_bytes()
        memory = next((shop.folder / "state").rglob("memory.json")).read_bytes()
        others = {name: (shop.package / name).read_bytes() for name in (TERMS, EVALUATION)}
        repository = shop.repository()
        lists = {
            kind: document.model_dump_json().encode()
            for kind, document in (
                (RevocationList, repository.revocations()),
                (Reinstatements, repository.reinstatements()),
                (Releases, repository.releases()),
            )
        }
    targets: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
        "manifest": (parse_envelope(envelope, "fuzz").payload, parse_statement),
        "envelope": (envelope, lambda data: open_envelope(data, "fuzz", keys, 2, frozenset())),
        "bundle": (bundle, lambda data: check_bundle(data, manifest)),
        "policy": (policy, lambda data: parse(Policy, data, "fuzz")),
        "pin": (pin, lambda data: pinned_keys(parse(Pin, data, "fuzz"))),
        "memory": (memory, lambda data: parse(Memory, data, "fuzz")),
        **{kind.__name__: (data, functools.partial(_read_list, kind)) for kind, data in lists.items()},
        **{name: (data, lambda data: parse_json(data, "fuzz")) for name, data in others.items()},
    }
    return {
        name: Parser(read, (document,), lambda rng, data, _: damage(data, rng))
        for name, (document, read) in targets.items()
    }


if __name__ == "__main__":
    command(__doc__, parsers())
