"""Sphinx's settings for `make docs`: Markdown by MyST, the theme Furo, the API's reference by autodoc.

Sources are the pages as a code host shows them: those of `docs/`, and the project's own pages beside it. The table of
contents is read from the sections of docs/README.md, so that a new page is written down there and nowhere else. Nothing
is fetched, neither while the site is built nor when it is read.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stillroom.core.version import tool_version

ROOT = Path(__file__).resolve().parent.parent

project = "Stillroom"
author = "Stillroom's developers"
project_copyright = author
release = version = tool_version().split()[-1]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/README"
include_patterns = ["docs/**.md", "*.md"]
exclude_patterns = [".*", "build", "dist", "runs", "src", "tests", "tools", "benchmarks", "attacks", "recipes"]
language = "en"
smartquotes = False  # "--part" is an option, not a dash

myst_heading_anchors = 6
suppress_warnings = ["myst.header"]  # a page may begin below its first level of headings
highlight_language = "text"

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
OTHERS = r"^(?!stillroom\.).*"
"""Names of Python's own and of other libraries: their references are not on this machine."""
nitpick_ignore_regex = [("py:.*", OTHERS)]
nitpick_ignore = [
    ("py:class", f"stillroom.{name}")
    for name in (
        "verification.manifest.Manifest",
        "verification.claims.Claims",
        "verification.client.View",
        "signals.cache.manifest.FileEntry",
    )
]
"""What packages and caches hold of their own files; docs/packages.md and docs/cache-format.md describe those."""

html_theme = "furo"
html_title = f"Stillroom {release}"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_search_scorer = str(ROOT / "docs" / "site" / "scorer.js")
html_copy_source = False
html_show_sphinx = False
html_additional_pages = {"index": "home.html"}
templates_path = ["site/templates"]
html_theme_options = {"top_of_page_buttons": []}

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def contents(page: str) -> str:
    """Hidden tables of contents, one for each section of docs/README.md, of the pages that it links to.

    A page stands where it is linked first.
    """
    seen: set[str] = set()
    tables = []
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL):
        pages = []
        for target in re.findall(r"\]\(([^)#:]+\.md)\)", FENCE.sub("", text)):
            path = (ROOT / "docs" / target).resolve().relative_to(ROOT).with_suffix("").as_posix()
            if path not in seen:
                seen.add(path)
                pages.append(f"/{path}")
        if pages:
            tables.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```", ""]))
    return "\n".join(tables)


def _add_contents(_app: Any, name: str, source: list[str]) -> None:
    if name == root_doc:
        source[0] += "\n" + contents(source[0])


def setup(app: Any) -> None:
    """Add the table of contents while the page of contents is read."""
    app.connect("source-read", _add_contents)
