"""HTML: the text that a reader of the page sees, a line for each block. Scripts, styles and comments are no text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillroom.core.errors import CorpusError
from stillroom.core.extras import require
from stillroom.corpus.inputs import MARKS, canonical
from stillroom.corpus.readers.reader import Reader, decoded
from stillroom.corpus.web_encoding import SINGLE_BYTE, as_browsers_read, single_byte

UNSEEN = ("script", "style", "noscript", "template", "svg", "head")
BLOCKS = frozenset(
    (
        "address",
        "article",
        "aside",
        "blockquote",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "li",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "summary",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "title",
        "tr",
        "ul",
    )
)


def text_of_html(markup: str) -> str:
    """The text of a page: its title, then its body; blocks are paragraphs, cells of a row are beside each other.

    Raises:
        MissingDependency: BeautifulSoup is not installed.
    """
    require("documents", "HTML files need {}.", "bs4")
    import bs4

    soup = bs4.BeautifulSoup(markup, "html.parser")
    title = soup.title.get_text(" ", strip=True) if soup.title is not None else ""
    for tag in soup.find_all(UNSEEN):
        tag.decompose()
    parts: list[str] = []
    _gather(soup, parts, kept=False)
    lines: list[str] = []
    for line in "".join(parts).split("\n"):
        # Of white space outside <pre> one space is left; the mark tells which lines are inside.
        text = line[1:].rstrip() if line.startswith("\x02") else " ".join(line.split())
        if text or (lines and lines[-1]):
            lines.append(text)
    body = "\n".join(lines).strip("\n")
    return (f"{title}\n\n{body}" if title and not body.startswith(title) else body) + "\n"


def _gather(node: Any, parts: list[str], *, kept: bool) -> None:
    """The text under a node, with line ends around blocks."""
    from bs4.element import NavigableString, PreformattedString

    stack: list[Any] = [(node, kept)]
    while stack:
        entry = stack.pop()
        if isinstance(entry, str):
            parts.append(entry)
            continue
        current, pre = entry
        if isinstance(current, PreformattedString):
            continue
        if isinstance(current, NavigableString):
            words = str(current).replace("\x02", "")
            parts.append(words.replace("\n", "\n\x02") if pre else " ".join(f"x{words}x".split())[1:-1])
            continue
        name = current.name
        inner = pre or name == "pre"
        after = "\n" if name in BLOCKS else ""
        if name in ("td", "th"):
            after = " | "
        if name == "br":
            parts.append("\n\x02" if pre else "\n")
        elif name in BLOCKS and name not in ("td", "th"):
            gap = "\n" if name in ("li", "tr", "dt", "dd", "tbody", "thead") else "\n\n"
            parts.append(gap + ("\x02" if name == "pre" else ""))
            after = gap
        elif name == "img" and current.get("alt"):
            parts.append(str(current["alt"]))
        stack.append(after)
        stack.extend((child, inner) for child in reversed(list(current.children)))


def markup_of(data: bytes, path: Path, encoding: str = "utf-8") -> str:
    """The characters of a page: by its byte order mark, then by what it declares, then as ``encoding`` says.

    Args:
        data: The page.
        path: What messages call it.
        encoding: Of pages that declare none; another one than UTF-8 counts more than what they declare.

    Raises:
        CorpusError: The bytes are not of that encoding, or there is no such encoding.
        MissingDependency: BeautifulSoup is not installed.
    """
    require("documents", "HTML files need {}.", "bs4")
    from bs4.dammit import EncodingDetector

    by_default = canonical(encoding) == "utf-8"
    marked = next((name for mark, name in MARKS if data.startswith(mark)), None)
    # Without a mark, XML tells the order of UTF-16's bytes by its first character (XML 1.0, appendix F).
    wide = "utf-16-le" if data.startswith(b"<\0") else "utf-16-be" if data.startswith(b"\0<") else None
    declared = EncodingDetector.find_declared_encoding(data[:4096], is_html=True, search_entire_document=True)
    if declared and (canonical(declared) or "").startswith(("utf-16", "utf-32")):
        # It could not be read if it were.
        declared = "utf-8"
    used = as_browsers_read(declared if declared and by_default else encoding)
    if marked is not None or wide is not None:
        used = marked or wide or used if by_default else encoding
    elif used in SINGLE_BYTE:
        try:
            return single_byte(data, used)
        except UnicodeDecodeError:
            pass  # said with the file and offset below
    markup = decoded(data, path, used)
    if "\0" in markup:
        raise CorpusError(
            f"{path}: read as {used}, character {markup.index(chr(0))} is 0, so that it is no page.",
            "Write the `encoding` that it is in, such as utf-16-le; or leave it out by `pattern`.",
        )
    return markup


def _read(path: Path, encoding: str) -> Iterator[str]:
    yield text_of_html(markup_of(path.read_bytes(), path, encoding))


READERS = (Reader((".html", ".htm", ".xhtml"), _read),)
