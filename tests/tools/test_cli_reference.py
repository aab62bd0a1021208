"""The page of commands has every command and option of the parser."""

from __future__ import annotations

from typing import Any

import typer

from stillroom.cli.app import app
from tools.cli_reference import TARGET, commands, page


def test_the_page_is_that_of_the_parser() -> None:
    assert TARGET.read_text(encoding="utf-8") == page()


def test_every_command_with_all_its_options_is_on_it() -> None:
    text = page()
    root: Any = typer.main.get_command(app)
    found = dict(commands(root))
    assert {"stillroom run", "stillroom guard key new", "stillroom cache seal"} <= set(found)
    sections = {section.partition("\n")[0]: section for section in text.split("\n## ")[1:]}
    assert set(sections) == set(found)
    for name, command in found.items():
        options = [option for one in command.params if not one.hidden for option in one.opts if option.startswith("-")]
        assert [option for option in options if f"`{option}" not in sections[name]] == [], name
