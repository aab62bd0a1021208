"""Patterns of files: every wildcard stays inside one name of a path, as Python's own glob reads it."""

from __future__ import annotations

import glob
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.core.patterns import matcher

NAMES = (
    "train.txt",
    "train1.txt",
    "train/.txt",
    "train/secret.txt",
    "chapter1.md",
    "chaptera.md",
    "chapter/old.md",
    "chapter/1/old.md",
    "a,b.md",
    "a/b.md",
    "a[b.md",
    "line\nend.md",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("patterns")
    for name in NAMES:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()
    return base


def by_glob(folder: Path, pattern: str) -> set[str]:
    found = glob.glob(pattern, root_dir=folder, recursive=True, include_hidden=True)  # noqa: PTH207
    return {name for name in found if (folder / name).is_file()}


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("train?*.txt", {"train1.txt"}),
        ("chapter[!0-9]*.md", {"chaptera.md"}),
        ("a[+-9]b.md", {"a,b.md"}),
        ("chapter*", {"chapter1.md", "chaptera.md"}),
        ("**/old.md", {"chapter/old.md", "chapter/1/old.md"}),
        ("*/?*.txt", {"train/secret.txt"}),
        ("a[b.md", {"a[b.md"}),
        ("line*", {"line\nend.md"}),
    ],
)
def test_a_wildcard_stays_in_its_folder(pattern: str, wanted: set[str], folder: Path) -> None:
    assert {name for name in NAMES if matcher([pattern])(name)} == wanted == by_glob(folder, pattern)


@settings(max_examples=300, deadline=None)
@given(
    pattern=st.lists(
        st.sampled_from(
            ["*", "?", "[!0-9]", "[+-9]", "[]a]", "[", "/", "**/", "train", "chapter", "old", "a", "b", ".md"]
        ),
        min_size=1,
        max_size=5,
    ).map("".join)
)
def test_a_pattern_means_what_it_means_to_python(pattern: str, folder: Path) -> None:
    if pattern.startswith("/") or "//" in pattern:
        return
    assert {name for name in NAMES if matcher([pattern])(name)} == by_glob(folder, pattern)
