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
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.serve import default_model
from benchmarks.serving import Serving, serving

HERE = Path(__file__).parent / "client_checks"
VENVS = Path(".venvs/clients")
LITELLM = "litellm==1.110.2 --hash=sha256:9d94d1c7d524b6fd10c14f9c8c6c4f0ac31705f9964ac59dcfd8337c046d8917"
KEY = "benchmark-of-clients-0001"


@dataclass(frozen=True)
class Client:
    """One client.

    Attributes:
        name: What it is called.
        packages: What is installed for it.
        pinned: Lines of requirements that are installed by their digests before that.
        npm: It is installed by npm.
    """

    name: str
    packages: tuple[str, ...]
    pinned: tuple[str, ...] = ()
    npm: bool = False


CLIENTS = [
    Client("openai", ("openai==3.57.0",)),
    Client("ollama", ("ollama==0.6.3",)),
    Client("litellm", ("litellm==1.110.2",), pinned=(LITELLM,)),
    Client("langchain", ("langchain-openai", "langchain-ollama")),
    Client("instructor", ("instructor", "openai")),
    Client("lm_eval", ("lm-eval[api]==0.4.13",)),
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
        _run([*pip, *client.packages])
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
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=1200)
        found: list[dict[str, Any]] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except (subprocess.TimeoutExpired, ValueError):
        return [{"check": "it runs", "passed": False, "why": done.stderr[-800:] if "done" in locals() else "no end"}]
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Only `openai` and `ollama` for Python.")
    parser.add_argument("--only", nargs="*", help="Names of clients.")
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
            if client.name not in wanted:
                continue
            try:
                table[client.name] = checks(client, prepared(client), server, model)
            except (subprocess.SubprocessError, OSError) as error:
                why = str(getattr(error, "stderr", None) or error)[-800:]
                table[client.name] = [{"check": "it is installed", "passed": False, "why": why}]
    every = [check for found in table.values() for check in found]
    figures = {"checks": len(every), "failures": sum(not check["passed"] for check in every), "clients": len(table)}
    report.write(figures, {"table": table}, given.json)


if __name__ == "__main__":
    main()
