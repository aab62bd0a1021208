"""What the pages say exists: their links lead somewhere, and the commands that they show have these names and options."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from stillroom.cli.app import app
from stillroom.recipe.recipe import Recipe
from stillroom.serving.answers import Answerer
from stillroom.serving.metrics import Metrics

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as they are made from their words."""
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{named(page)}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{named(page)}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_rows_of_a_table_have_as_many_cells_as_its_head(page: Path) -> None:
    width = 0
    for line in BLOCK.sub("", page.read_text(encoding="utf-8")).splitlines():
        # A bar ends a cell in code too, unless it is escaped.
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not width or not cells or cells == width, f"{named(page)}: {line[:80]}"
        width = cells


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each call of `stillroom` in a page's blocks, without what follows a pipe or a comment."""
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language not in ("", "bash", "sh", "shell", "console"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            words = re.split(r"\s[|>&;]|\s#|\s{2}", line.strip().removeprefix("$ ").removeprefix(".venv/bin/"))[0]
            if re.match(r"stillroom( |$)", words) and "…" not in words:
                yield shlex.split(words)
    for words in re.findall(r"`(stillroom [^`\n]+)`", BLOCK.sub("", page.read_text(encoding="utf-8"))):
        # In a sentence, capitals and bars stand for what the reader puts there.
        if not re.search(r"…|\||stillroom [A-Z]", words):
            yield shlex.split(words)


@pytest.mark.parametrize("page", [page for page in PAGES if list(commands(page))], ids=named)
def test_commands_have_these_names_and_options(page: Path) -> None:
    root: Any = typer.main.get_command(app)
    for words in commands(page):
        command, left = root, words[1:]
        while left and hasattr(command, "commands"):
            if left[0] not in command.commands:
                assert left[0].startswith("-"), f"{named(page)}: {shlex.join(words)}: no such command"
                break
            command, left = command.commands[left[0]], left[1:]
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        for word in left:
            if re.match(r"--\w", word):
                assert word.partition("=")[0] in options | {"--help"}, f"{named(page)}: {shlex.join(words)}: {word}"


def test_commands_are_found_in_the_pages() -> None:
    assert sum(len(list(commands(page))) for page in PAGES) > 50


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_and_targets_that_a_page_names_exist(page: Path) -> None:
    if (
        page.name == "CHANGELOG.md" or page.parent.name == "contributing"
    ):  # files of earlier releases, and of the reader
        return
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|attacks|benchmarks|tools|recipes|src)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{named(page)}: {path}"
    for module in re.findall(r"(?:python -m |`)((?:benchmarks|attacks|tools)(?:\.\w+)+)\b", text):
        parts = module.split(".")
        found = [ROOT.joinpath(*parts[:length]) for length in range(len(parts), 0, -1)]
        assert found[0].is_dir() or any(path.with_suffix(".py").is_file() for path in found[:2]), (
            f"{named(page)}: {module}"
        )
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for target in re.findall(r"(?:^|`)make (?:\w+=\S+ )?([a-z][\w-]*)", text, re.MULTILINE):
        assert target in targets, f"{named(page)}: make {target}"


def test_keys_that_a_page_names_are_keys_of_a_recipe() -> None:
    schema = Recipe.model_json_schema()

    def inside(node: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        for name in ("anyOf", "oneOf", "allOf"):
            for each in node.get(name, ()):
                yield from inside(each, key)
        if key in node.get("properties", {}):
            yield node["properties"][key]
        if isinstance(node.get("additionalProperties"), dict):
            yield node["additionalProperties"]
        if "items" in node:
            yield from inside(node["items"], "" if key.isdecimal() else key)
            if key.isdecimal():
                yield node["items"]

    seen = 0
    for page in (page for page in PAGES if page.name != "CHANGELOG.md" and page.parent.name != "benchmarks"):
        for code in re.findall(r"`([a-z_]+(?:\.\w+)+)(?::[^`\n]*)?`", BLOCK.sub("", page.read_text(encoding="utf-8"))):
            section, *keys = code.split(".")
            # `terms.json` is a file of a package, `teacher.kl_to_original` a figure of a report.
            if section not in schema["properties"] or keys[-1] in ("json", "py", "kl_to_original"):
                continue
            found = [schema["properties"][section]]
            for key in keys:
                found = [inner for node in found for inner in inside(node, key)]
                assert found, f"{named(page)}: `{code}`: no recipe has `{key}` there"
            seen += 1
    assert seen > 100


def test_every_extra_is_named_where_installing_is_explained() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert [name for name in extras if name not in ("bench", "docs", "dev") and f"`{name}`" not in text] == []


def test_every_figure_of_the_server_is_explained() -> None:
    pool: Any = SimpleNamespace(models={})
    nothing: Any = SimpleNamespace()
    nothing.is_on = lambda: True
    figures = {
        family.name: family.type for family in Metrics(pool, Answerer(pool, nothing), nothing).registry.collect()
    }
    text = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    assert len(figures) > 5
    for name, kind in figures.items():
        shown = name.removeprefix("stillroom_") + ("_total" if kind == "counter" else "")
        assert f"`{shown}`" in text, f"docs/serve.md does not say what {name} is"


def test_every_page_is_in_the_table_of_contents() -> None:
    docs = ROOT / "docs"
    linked = {target.partition("#")[0] for target in LINK.findall((docs / "README.md").read_text(encoding="utf-8"))}
    assert {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - linked == {"README.md"}
