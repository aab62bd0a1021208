"""Every shell and Python block of the tutorial and the how-tos runs on tiny models, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import FIXTURES, Block, Follower, commands, pages, read_page, with_changes

PAGES = pages()
COUNTS: dict[str, tuple[int, list[str]]] = {}


def test_pages_are_read_as_the_comments_say(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- docs: given text/ = text -->\n<!-- docs: file a.yaml, tiny; student.layers=2 -->\n```yaml\na: 1\n```\n"
        "```\nstillroom run a.yaml\n```\n<!-- docs: not run: it needs a GPU -->\n```bash\nb\n```\n```\nonly shown\n```\n"
    )
    read = read_page(page)
    assert read.given == {"text/": "text"}
    assert [block.kind for block in read.blocks] == [None, "shell", "shell", None]
    assert [block.reason for block in read.blocks] == [None, None, "it needs a GPU", None]
    assert read.blocks[0] == Block("yaml", "a: 1\n", 3, "a.yaml", ("tiny", "student.layers=2"))
    page.write_text("<!-- docs: skip -->\n```\nls\n```\n")
    with pytest.raises(AssertionError, match="skip"):
        read_page(page)


def test_a_recipe_keeps_what_is_not_changed() -> None:
    changed = with_changes("a: {b: 1, c: 2}\nd: 3\n", ("a.b=null", "e.f=[1]"))
    assert with_changes("a: {b: 4}", ("added",), changed) == changed.replace("a:\n", "a:\n").replace(
        "c: 2", "c: 2\n  b: 4"
    )
    assert changed == "a:\n  c: 2\nd: 3\ne:\n  f:\n  - 1\n"


def test_commands_over_several_lines_are_one() -> None:
    assert commands("a \\\n b\n# no\n\ncat > x <<'E'\n1\nE\nd\n") == ["a  b", "cat > x <<'E'\n1\nE", "d"]


@pytest.mark.docs
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_blocks_of_a_page_run(path: Path, tmp_path: Path) -> None:
    page = read_page(path)
    programs = [block for block in page.blocks if block.kind is not None and block.file is None]
    left_out = [f"{page.name}:{block.line}: {block.reason}" for block in programs if block.reason is not None]
    with Follower(page, tmp_path, FIXTURES) as follower:
        ran = sum(1 for _ in follower.follow())
    assert ran == len(programs) - len(left_out)
    COUNTS[page.name] = (ran, left_out)


@pytest.mark.docs
def test_the_number_of_blocks_that_ran() -> None:
    left_out = [line for _, lines in COUNTS.values() for line in lines]
    ran = sum(count for count, _ in COUNTS.values())
    print(f"\n{ran} blocks of {len(COUNTS)} pages ran, {len(left_out)} did not:", *left_out, sep="\n  ")
    if len(COUNTS) == len(PAGES):
        assert ran >= 40
