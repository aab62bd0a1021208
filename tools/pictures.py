"""Makes the pictures of the documentation from a finished run: the head of its report, and the chat page with one answer.

    python -m tools.pictures runs/tutor --ask "What does a Python for loop do?"

Needs Chromium and the extra `serve`. The pictures are of what was there: a run that wrote nonsense shows nonsense.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tools.browser import Browser, browser

IMAGES = Path(__file__).parent.parent / "docs" / "images"
WIDTH = 960


@contextlib.contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of a server of a run.

    Raises:
        RuntimeError: It ended before it answered.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "stillroom", "serve", str(run), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            if process.poll() is not None:
                raise RuntimeError(f"the server of {run} ended with {process.returncode}")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait()


def report(page: Browser, run: Path, target: Path) -> None:
    """The head of a run's report."""
    page.size(WIDTH, 760)
    page.open((run / "report.html").resolve().as_uri())
    page.picture(target)


def chat(page: Browser, address: str, question: str, target: Path) -> None:
    """The chat page after one question, when its answer is complete."""
    page.size(WIDTH, 640)
    page.open(address)
    page.wait("document.querySelector('#question') && !document.querySelector('#question').disabled")
    page.do("document.querySelector('#max_tokens').value = 40, document.querySelector('#seed').value = 0")
    page.do(
        f"(() => {{ const box = document.querySelector('#question'); box.value = {json.dumps(question)};"
        "box.dispatchEvent(new Event('input', {bubbles: true}));"
        "box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true})); })()"
    )
    page.wait(f"document.body.innerText.includes({json.dumps(question)})")
    text, same = "", 0
    while same < 20:  # an answer that has been the same for two seconds is complete
        shown = str(page.do("document.body.innerText"))
        same, text = (same + 1 if shown == text else 0), shown
        time.sleep(0.1)
    page.picture(target)


def main() -> int:
    """Write both pictures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--ask", required=True)
    given = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with browser() as page:
        report(page, given.run, IMAGES / "report.png")
        with served(given.run) as address:
            chat(page, address, given.ask, IMAGES / "chat.png")
    for path in (IMAGES / "report.png", IMAGES / "chat.png"):
        print(f"{path.relative_to(IMAGES.parent.parent)}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
