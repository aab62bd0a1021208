"""The built site: nothing is fetched from elsewhere, no page is wider than the window, and its search answers.

`make docs` builds the site first (`make test-all` does both); without it, or without Chromium, these tests are skipped.
"""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.browser import Browser, browser, chromium

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
WIDTHS = (390, 1280)
SHOWN = 10
"""Results that a reader looks at."""
pytestmark = [
    pytest.mark.docs,
    pytest.mark.skipif(not (SITE / "searchindex.js").is_file(), reason="`make docs` has not built the site"),
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed"),
]


@dataclass(frozen=True)
class Task:
    """What a new user looks for: the words they type, the page they land on, what answers there, a link to follow first."""

    query: str
    page: str
    answer: str
    then: str | None = None


TASKS = {
    "own text": Task("own text", "docs/own-model.html", "kind: text"),
    "a GPU": Task("gpu", "docs/gpu.html", "device: auto"),
    "an endpoint": Task("endpoint teacher", "docs/endpoint-teacher.html", "kind: endpoint"),
    "a wrong learning rate": Task("wrong learning rate", "docs/own-model.html", "A wrong learning rate shows so"),
    "refused terms": Task("licence refused", "docs/terms.html", "refused until you supply"),
    "an error's words": Task("terms do not allow", "docs/troubleshooting.html", "The terms do not allow this."),
}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page() -> Iterator[Browser]:
    with browser() as made:
        yield made


def results(page: Browser, address: str, query: str) -> list[str]:
    """Addresses of the first results, by typing a query into the field beside every page."""
    page.size(1280, 900)
    page.open(f"{address}/docs/README.html")
    page.do(
        "(() => { const field = document.querySelector('.sidebar-search'); "
        f"field.value = {query!r}; field.form.submit(); }})()"
    )
    page.wait("location.pathname.endsWith('/search.html')")
    page.wait("document.querySelector('.search-summary') && document.querySelectorAll('ul.search li a').length")
    # The list grows while it is filled; its end is announced by the summary.
    page.wait("/found|did not match/.test(document.querySelector('.search-summary').innerText)")
    found: list[str] = page.do("[...document.querySelectorAll('ul.search li > a')].map((link) => link.href)")
    return found[:SHOWN]


@pytest.mark.parametrize("name", TASKS)
def test_a_question_is_answered_within_two_clicks(name: str, page: Browser, address: str) -> None:
    task = TASKS[name]
    found = [link.removeprefix(f"{address}/") for link in results(page, address, task.query)]
    fitting = [link for link in found if link.partition("#")[0].partition("?")[0] == task.page]
    assert fitting, f"{task.query}: {found}"
    page.do(
        f"[...document.querySelectorAll('ul.search li > a')].find((link) => link.href.includes('{task.page}')).click()"
    )
    page.wait(f"location.pathname.endsWith('{task.page}') && document.readyState === 'complete'")
    path = [f"search for “{task.query}”", f"result {found.index(fitting[0]) + 1}: {fitting[0]}"]
    if task.then is not None:
        page.do(
            f"[...document.querySelectorAll('article a')].find((link) => link.href.includes('{task.then}')).click()"
        )
        page.wait(f"location.href.includes('{task.then}') && document.readyState === 'complete'")
        path.append(task.then)
    text = " ".join(str(page.do("document.querySelector('article').innerText")).split())
    assert task.answer in text
    print(f"\n{name}: {' → '.join(path)} → “{task.answer}”")


def test_pages_fit_the_window_and_fetch_nothing_from_elsewhere(page: Browser, address: str) -> None:
    pages = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    page.requested.clear()
    wide = []
    for width in WIDTHS:
        page.size(width, 900)
        for name in pages:
            page.open(f"{address}/{name}")
            # The first address leads on to another page: between the two there is none.
            if (size := page.wait("document.documentElement.scrollWidth")) > width:
                wide.append(f"{name}: {size} of {width} pixels")
    assert not wide
    assert len(pages) > 50
    assert {link for link in page.requested if not link.startswith((address, "data:"))} == set()
    print(f"\n{len(pages)} pages at {WIDTHS} pixels")


def test_the_first_address_leads_to_the_contents(page: Browser, address: str) -> None:
    page.open(address)
    page.wait("location.pathname.endsWith('/docs/README.html') && document.readyState === 'complete'")
    captions = page.do(
        "[...document.querySelectorAll('.sidebar-tree .caption-text')].map((caption) => caption.innerText)"
    )
    wanted = "Tutorial How-to Concepts Reference Troubleshooting Benchmarks Comparison Support"
    assert [caption.lower() for caption in captions] == wanted.lower().split()
