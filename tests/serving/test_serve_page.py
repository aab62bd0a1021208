"""The chat page in headless Chromium: three widths, two themes, axe, and all of it from the keyboard.

Needs Chromium, Node and the npm packages playwright-core and axe-core in ``.venvs/node``; skips where they are missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from serve_support import running

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / ".venvs" / "node"


def test_the_page_in_a_browser(tiny_gguf: Path, tmp_path: Path) -> None:
    if not (shutil.which("chromium") and shutil.which("node")):
        pytest.skip("Chromium or Node is not installed")
    if not (MODULES / "node_modules" / "playwright-core").is_dir():
        pytest.skip("npm install --prefix .venvs/node playwright-core axe-core")
    if not os.environ.get("STILLROOM_BROWSER"):
        pytest.skip("takes half a minute: set STILLROOM_BROWSER=1")
    with running([tiny_gguf], tmp_path, context=1024) as made:
        words = ["node", str(Path(__file__).parent / "browser.mjs"), str(MODULES), f"http://127.0.0.1:{made.port}"]
        done = subprocess.run([*words, str(tmp_path)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["axe"] == []
    assert seen["console"] == []
    assert seen["overflow"] == []
    assert seen["foreign"] == []
    assert all(seen["keyboard"].values())
    assert seen["composed"] == {"sent": 0, "sentBySafari": False}
    told = {"p": "rtl", "ul": "rtl", "pre": "ltr", "p:last-of-type": "ltr", "table": "ltr"}
    assert set(map(str, seen["direction"].values())) == {str(told)}
    assert "no one has signed" in seen["provenance"]
