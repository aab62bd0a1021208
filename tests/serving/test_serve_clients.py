"""Real clients against a server: the Python package ``openai``, and npm's ``openai`` and ``@ai-sdk/openai-compatible``.

They live in environments of their own (``.venvs/openai``, ``.venvs/node``), and are skipped where those are missing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from serve_support import Running

HERE = Path(__file__).parent
VENVS = HERE.parents[1] / ".venvs"


def saw(words: list[str]) -> dict[str, object]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_the_openai_client_for_python(server: Running) -> None:
    python = VENVS / "openai" / "bin" / "python"
    if not python.is_file():
        pytest.skip("python -m venv .venvs/openai && .venvs/openai/bin/pip install openai")
    seen = saw([str(python), str(HERE / "client_openai.py"), f"http://127.0.0.1:{server.port}"])
    assert all(seen.values()), seen
    assert len(seen) == 10


def test_the_npm_clients(server: Running) -> None:
    node, modules = shutil.which("node"), VENVS / "node"
    if node is None or not (modules / "node_modules" / "openai").is_dir():
        pytest.skip("npm install --prefix .venvs/node openai ai @ai-sdk/openai-compatible")
    seen = saw([node, str(HERE / "client.mjs"), str(modules), f"http://127.0.0.1:{server.port}"])
    assert all(value is True for value in seen.values()), seen
