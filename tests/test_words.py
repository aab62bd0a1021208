"""Texts use the field's words: older ones only where docs/glossary.md excepts them, and each where it is described."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
HISTORY = ROOT / "CHANGELOG.md"  # says of each release what it was called then
PAGES = [
    path for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]) if path not in (GLOSSARY, HISTORY)
]
SOURCES = sorted((ROOT / "src" / "stillroom").rglob("*"))
MARKUP = re.compile(r"^```.*?^```|`[^`]*`|<!--.*?-->|\]\([^)]*\)|https?://\S+", re.MULTILINE | re.DOTALL)
TEMPLATE = re.compile(r"<style.*?</style>|<script.*?</script>|<[^>]*>|\{[{%#].*?[}%#]\}|`[^`]*`", re.DOTALL)

OLDER = {
    "says, speaks, hears, is asked (of a model)": (
        r"(teacher|student)s? (says?|said|speaks?|spoke|hears?|heard|(is|are) asked)\b"
    ),
    "cut, turned down": r"\b(the|a|each|every) cuts?\b(?! off)|\bcuts (of|to)\b|\bturned down\b",
    "closed form, heal, made up for": r"\bclosed form\b|\bheal(s|ed|ing)?\b|\bmade up for\b",
    "rates by `a`": (
        r"\b(tokens?|bytes?|steps?|positions?|units?|rows?|FLOPs?|operations?) "
        r"an? (second|minute|hour|token|position)\b"
    ),
    "processor": r"\bprocessors?\b",
    "number format, bends": r"\bnumber formats?\b|\bbend(s|ing)?\b(?! (whoever|all))",
    "measure (of evaluation)": r"\b(no|finished|unknown) measures?\b(?! what)|\bthe measures? `",
    "had (of what is available)": r"\b(is|are|be) had\b",
    "floors, ceilings": r"\b(floor|ceiling)s?\b",
    "passport, worksheet, in force, ledger": r"\bpassports?\b|\bworksheets?\b|\bin force\b|\bledgers?\b",
    "may we, judge, verdict, owe": r"\bmay we\b|\bjudge[sd]?\b|\bverdicts?\b|\bow(e|es|ed|ing)\b",
    "pieces of a token": r"(?<!document's )\bpieces? of (a|the|its|one|each)? ?tokens?\b",
    "whole number, whoever, nobody, afar": r"\bwhole numbers?\b|\bwhoever\b|\bnobody\b|\bafar\b",
    "lies, stands": r"\blies?\b|\bstands?\b",
    "ffn_width": r"\bffn_width\b",
    "knows nothing of": r"\bknows? nothing of\b",
    "room, house, roof": r"\b(rooms?|houses?|roofs?)\b",
}
"""The left column of the table, as what finds it in a text."""
EXCEPTED = {
    "lies, stands": (
        r"stands? (in )?for\b|stands? in the way|stand-ins?|as it stands"
        r"|lies? (between|within|in \[)|publisher that lies|that lies about"
    ),
    "processor": r"post-processor|payment processor",
    "may we, judge, verdict, owe": r"LLM judge",
    "passport, worksheet, in force, ledger": r"ledger\.json",
    "closed form, heal, made up for": r"heal\.py",
}
"""What docs/glossary.md lists with its reasons: ordinary uses, and names of others."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """What people read in a file, with its lines: a page without code, comments and strings of a module, a template's words."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            # A string without a space is a key or a name.
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and " " in token.string):
                # Names are code too: in backquotes, in braces, and before the colon in a list of arguments.
                words = re.sub(r"``[^`]*``|`[^`]*`|\{[^{}]*\}|^ +\w+:(?= )", "", token.string, flags=re.MULTILINE)
                yield from enumerate(words.splitlines(), token.start[0])
    else:
        markup = MARKUP if path.suffix == ".md" else TEMPLATE
        whole = markup.sub(lambda found: "\n" * found[0].count("\n"), text)
        yield from enumerate(whole.splitlines(), 1)


def older(path: Path) -> list[str]:
    """Every older word in a file that nothing excepts."""
    found = []
    for line, text in texts(path):
        for name, pattern in OLDER.items():
            left = re.sub(EXCEPTED[name], "", text, flags=re.IGNORECASE) if name in EXCEPTED else text
            found += [
                f"{path.relative_to(ROOT)}:{line}: {match[0]}: {text.strip()}"
                for match in re.finditer(pattern, left, re.IGNORECASE)
            ]
    return found


def read_by_people() -> list[Path]:
    """Pages, modules, templates and tables."""
    sources = [
        path for path in SOURCES if path.suffix in (".py", ".jinja", ".html") and "__pycache__" not in path.parts
    ]
    return [*PAGES, *sources]


def test_older_words_are_in_no_text() -> None:
    found = [line for path in read_by_people() for line in older(path)]
    assert not found, "\n".join([f"{len(found)} lines", *found])


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("The teacher says more.", "teacher says"),
        ("`verdict` is a key; the verdict is not.", "verdict"),
        ("40 tokens a second, and a second later", "tokens a second"),
        ("A file that lies there; a reference publisher that lies.", "lies"),
    ],
)
def test_an_older_word_is_found(text: str, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    assert [line.split(": ")[1] for line in older(page)] == [word]


def glossary() -> list[tuple[str, list[str]]]:
    """Each word of the first table, with the pages that are said to describe it."""
    words = GLOSSARY.read_text(encoding="utf-8").partition("## Words")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| .* \| ([^|]+) \|$", words, re.MULTILINE)[1:]
    return [(word, re.findall(r"\]\(([^)#]+)", where)) for word, where in rows]


@pytest.mark.parametrize(("word", "where"), glossary(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_word_is_found_where_its_thing_is_described(word: str, where: list[str]) -> None:
    for target in where:
        text = (GLOSSARY.parent / target).resolve().read_text(encoding="utf-8").lower()
        for one in word.split(", "):
            stem = one.lower().removesuffix("s")
            assert stem in " ".join(text.split()), f"{target} does not have {one!r}"


def test_the_glossary_lists_what_the_search_excepts() -> None:
    older_names = GLOSSARY.read_text(encoding="utf-8").partition("## Older names that stay")[2]
    for pattern in EXCEPTED.values():
        words = set(re.findall(r"[a-z]{4,}", pattern.lower()))
        assert words <= set(re.findall(r"[a-z]+", older_names.lower())), words
