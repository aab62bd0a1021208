"""Writes docs/cli.md from the command line's parser, or checks that it is fresh (`--check`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from stillroom.cli.app import app
from tools.generated import cell, write_or_check

TARGET = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# Command line

Generated from the code by `make docs`; `make check` fails when it is stale. `stillroom COMMAND --help` says the same.

Exit status: 0 when a command did what it was asked; others are in the table of [troubleshooting](troubleshooting.md).
Commands that answer as JSON with `--json` write nothing else to standard output.

| command | what it does |
|---|---|
"""


def commands(command: Any, name: str = "stillroom") -> Iterator[tuple[str, Any]]:
    """Every command that does something itself, with its whole name, in the order of `--help`."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for key, one in inner.items():
        if not one.hidden:
            yield from commands(one, f"{name} {key}")


def page() -> str:
    """The whole page."""
    found = list(commands(typer.main.get_command(app)))
    lines = [HEAD]
    lines += [f"| [`{name}`](#{name.replace(' ', '-')}) | {_first(command)} |\n" for name, command in found]
    return "".join(lines) + "".join(_section(name, command) for name, command in found)


def _section(name: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *(_usage(one) for one in arguments)])
    lines = [f"\n## {name}\n\n{_cell(command.help)}\n\n```\n{usage}\n```\n"]
    if arguments or options:
        lines.append("\n| argument or option | meaning | default |\n|---|---|---|\n")
    lines += [f"| `{_usage(one)}` | {_cell(one.help)} | {_default(one)} |\n" for one in arguments]
    for one in options:
        value = "" if one.is_flag else f" {_metavar(one)}"
        names = ", ".join(f"`{text}{value}`" for text in one.opts)
        if one.secondary_opts:
            names += " or " + ", ".join(f"`{text}`" for text in one.secondary_opts)
        lines.append(f"| {names.replace('|', chr(92) + '|')} | {_cell(one.help)} | {_default(one)} |\n")
    return "".join(lines)


def _metavar(parameter: Any) -> str:
    """What stands for a value: the parser's own word, or that of its type."""
    if parameter.metavar:
        return str(parameter.metavar)
    kinds = {"Path": "PATH", "int": "INTEGER", "float": "NUMBER"}
    named = str(getattr(parameter.type_descriptor.annotation, "__name__", parameter.type_descriptor.annotation))
    return next((word for kind, word in kinds.items() if kind in named), "TEXT")


def _usage(argument: Any) -> str:
    text = str(argument.metavar or argument.name.upper()) + ("…" if argument.nargs == -1 else "")
    return text if argument.required else f"[{text}]"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if callable(value) or value is None or value is False or value == () or value == []:
        return ""
    return f"`{'yes' if value is True else value}`"


def _first(command: Any) -> str:
    return _cell((command.help or "").split("\n\n")[0])


def _cell(text: str | None) -> str:
    return cell(text or "").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, page()))
