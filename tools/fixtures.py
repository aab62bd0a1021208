"""Writes what this release keeps on a disk, for later releases to open: `python -m tools.fixtures tests/fixtures/VERSION`.

Every release writes one folder, once, and `tests/test_releases.py` opens all of them. A folder that is there already is not
touched: what an older release wrote cannot be written again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.version import tool_version
from stillroom.packages import repository
from stillroom.packages.keys import Ring
from stillroom.packages.pack import PackOptions, pack
from stillroom.packages.repository import Repository, signers_of
from stillroom.packages.sign import sign_package
from stillroom.pipeline import run
from stillroom.recipe.recipe import Recipe
from stillroom.runs.run import Run
from stillroom.signals.cache.reader import TeacherCache
from stillroom.signals.signal import SparseSignal
from stillroom.switch import Places, Switch, stopping
from stillroom.verification.closed import parse
from stillroom.verification.documents import Pin
from stillroom.verification.verification import verify

PASSPHRASE = "correct horse battery"
"""Opens the publisher's keys; they guard nothing."""
REVOKED = files.digest_bytes(b"a dataset whose owner asked")
"""What the publisher has revoked; nothing here was made with it."""
QUESTION = "Go"
"""One that the random model answers with more than the end of the text."""
CODECS: dict[str, dict[str, Any]] = {
    "threshold": {"kind": "threshold", "tau": 0.05},
    "top_k": {"kind": "top_k", "k": 8},
}
README = """# What Stillroom {version} wrote

`tests/test_releases.py` opens all of this with the present code. `python -m tools.fixtures` wrote it, with random weights as
the teacher; it is never written again. Paths in it are relative to this folder. The publisher's passphrase is
`{passphrase}`.

| | |
|---|---|
| `run/` | a finished run of `teacher/` on `text/`: every stage, F16 and Q8_0, summary and report |
| `cache/` | teacher caches in folders of their own (`capture.path`), one a codec |
| `publisher/` | keys, repository (its metadata expires in a hundred years), and the signed package of the run |
| `machine/` | what a machine that verified the package keeps: its pin, and its memory of the publisher |
| `switch/` | the switch's files: on and off with `tools` blocked, and a policy that blocks `downloads` |
| `served/` | the files of a server's user: one sealed session with its key, and the engine's state |
| `expected.json` | what the caches decode to, the package, the conversation |
"""


def main() -> None:
    """Write all of it into a new folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder.absolute()
    if folder.exists():
        raise SystemExit(f"{folder} is there already; what a release wrote stays as it is.")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # An interrupted release leaves nothing that the next call would take for a whole one.
    with files.replacing(folder) as beside:
        beside.mkdir()
        _write_all(beside)


def _write_all(folder: Path) -> None:
    # Relative paths in recipes and pins stay relative: the folder can be copied anywhere and used from inside.
    with contextlib.chdir(folder), tempfile.TemporaryDirectory() as scratch:
        _write_teacher_and_text()
        run(_recipe("run"), ".", quiet=True)
        caches = {name: _write_cache(name, Path(scratch)) for name in CODECS}
        package = _write_package(Path(scratch))
        _write_switches()
        expected = {
            "version": tool_version(),
            "caches": caches,
            "package": package,
            "revoked": REVOKED,
            "session": _write_session(),
        }
        files.write_json(Path("expected.json"), expected)
        files.write_text(Path("README.md"), README.format(version=tool_version(), passphrase=PASSPHRASE))
        for lock in Path().rglob(".lock"):
            lock.unlink()


def cache_digest(folder: Path) -> str:
    """SHA-256 over what a cache decodes to: addresses, ids, weights and entropies."""
    cache = TeacherCache.open(folder)
    parts: list[Any] = []
    for address in sorted(cache.digests):
        signal, counts = cache.read([address])
        assert isinstance(signal, SparseSignal)
        values = [files.digest_bytes(tensor.numpy().tobytes()) for tensor in (signal.ids, signal.weights)]
        parts.append([address, counts, list(signal.ids.shape), *values, signal.unbiased, cache.entropy(address)])
    return files.digest_json(parts)


def _recipe(name: str, **sections: Any) -> Recipe:
    decision = {"kind": "own", "decided_by": "tools.fixtures", "decided_at": "2026-11-24T00:00:00Z"}
    return Recipe.model_validate(
        {
            "name": name,
            "compute": {"device": "cpu", "threads": 1},
            "corpus": {
                "sources": [{"kind": "text", "path": "text", "licence": "PSF-2.0"}],
                "sequence_length": 64,
                "train_tokens": 512,
                "validation_tokens": 128,
                "heldout_tokens": 256,
            },
            "teacher": {"kind": "huggingface", "name": "teacher", "dtype": "float32"},
            "student": {"kind": "shrink", "layers": 2, "ffn_width": 32},
            "distill": {"batch_tokens": 256, "learning_rate": 1e-3, "precision": "float32"},
            "evaluate": {"speed_tokens": 4, "bootstrap_samples": 200},
            "export": {"gguf": ["F16", "Q8_0"], "check_tokens": 64},
            "chat": {"prompt": None},
            "terms": {"decisions": [decision | {"subject": subject} for subject in ("teacher", "student")]},
        }
        | sections
    )


def _write_teacher_and_text() -> None:
    from pydoc_data.topics import topics

    from tests.tiny_models import tiny_model

    tiny_model("llama", Path("teacher"), vocabulary_size=320, layers=3, hidden=32, tied=True)
    for number, name in enumerate(sorted(topics)[:40]):
        files.write_text(Path("text") / f"{number:02}.txt", topics[name][:400])


def _write_cache(name: str, scratch: Path) -> str:
    folder = Path("cache") / name
    capture = {"codec": CODECS[name], "path": str(folder)}
    run(_recipe(name, capture=capture), scratch, until="capture", quiet=True)
    return cache_digest(folder)


def _write_package(scratch: Path) -> dict[str, Any]:
    # Dates of the repository outlive this project: the tests are about formats, not about freshness.
    repository.VALID_DAYS.update(dict.fromkeys(repository.VALID_DAYS, 36_500))
    publisher, machine = Path("publisher"), Path("machine")
    ring = Ring.create(publisher / "keys", "acme", PASSPHRASE, cost=2)
    made = Repository(publisher / "repository", ring, signers_of([ring], PASSPHRASE))
    made.init(str(publisher / "repository"))
    package = pack(Run(Path("run"), _recipe("run")), publisher / "package", PackOptions(sequence=2))
    sign_package(package, ring, PASSPHRASE)
    made.add(package)
    made.revoke("dataset", REVOKED, "its owner asked")
    pin = (publisher / "repository" / "trust.json").read_bytes()
    files.write_bytes(machine / "trust" / "acme.json", pin)
    trust = parse(Pin, pin, "trust.json")
    with verify(package, trust=trust, state=machine / "state", copies=scratch / "copies") as verified:
        return {"digest": verified.digest, "name": verified.name, "sequence": verified.manifest.sequence}


def _write_switches() -> None:
    for name in ("on", "off", "policy"):
        # A switch of its own: nothing of the user's is touched.
        switch = Switch(Places.under(Path("switch").absolute() / name))
        switch.write(True)
        switch.set_feature("tools", "blocked")
        switch.set_feature("embeddings", "enabled")
        if name == "off":
            stopping.off(switch)
        if name == "policy":
            files.write_json(switch.places.policy, {"format": 1, "switch": "on", "features": {"downloads": "blocked"}})


def _write_session() -> dict[str, Any]:
    from tests.serving.serve_support import running

    weights = Path("run/export/run-Q8_0.gguf").absolute()
    with running([weights], Path("served").absolute()) as server:
        _, session, _ = server.ask("POST", "/v1/sessions", {"name": "lists", "system": "Be brief."})
        status, answer = server.chat(QUESTION, session=session["id"], temperature=0)
        if status != 200:
            raise SystemExit(f"the server answered {json.dumps(answer)}")
        _, whole, _ = server.ask("GET", f"/v1/sessions/{session['id']}")
    return {**whole, "prompt_tokens": answer["usage"]["prompt_tokens"]}


if __name__ == "__main__":
    main()
