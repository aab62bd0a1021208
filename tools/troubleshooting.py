"""Writes docs/troubleshooting.md from the errors that the code raises, or checks that it is fresh (`--check`).

Every `raise` of a class of `stillroom.core.errors` is read from the source: what it says, and what it says to do. What is known
only while the program runs (a file's name, a number) is shown as an ellipsis.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.core import errors
from tools.architecture import layers, module_file, purpose
from tools.generated import cell, write_or_check

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "stillroom"
TARGET = ROOT / "docs" / "troubleshooting.md"
UNKNOWN = "…"
SHORTEST = 8
"""Letters of a message below which it says nothing without its values."""
HEAD = """# Troubleshooting

Generated from the code by `make docs`; `make check` fails when it is stale. Search this page for the fixed words of a message;
`…` is what differs from case to case (a file, a number, a name).

Every error of the command line is one of these, and ends with an exit status that scripts can rely on. In Python the classes
are in `stillroom.core.errors`; `.what` is what happened, and `.todo` what to do.

"""


@dataclass(frozen=True)
class Message:
    """One message: what the class is called, what it says, and what it says to do."""

    kind: str
    what: str
    todo: str


def kinds() -> dict[str, type[errors.StillroomError]]:
    """The classes of the error tree by name."""
    found = {name: getattr(errors, name) for name in errors.__all__}
    return {
        name: kind for name, kind in found.items() if inspect.isclass(kind) and issubclass(kind, errors.StillroomError)
    }


def names_of_errors() -> set[str]:
    """Those of the tree, and of classes elsewhere that are one of them."""
    found = set(kinds())
    trees = [ast.parse(module.read_text(encoding="utf-8")) for module in sorted(SOURCE.rglob("*.py"))]
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while more := {one.name for one in classes if {ast.unparse(base) for base in one.bases} & found} - found:
        found |= more
    return found


def text_of(node: ast.expr | None) -> str:
    """The fixed words of an expression; alternatives are separated by a slash."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=values):
            return "".join(text_of(value) for value in values)
        case ast.FormattedValue(value=ast.IfExp() as value):
            return text_of(value)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
        case ast.IfExp(body=body, orelse=orelse):
            parts = [part for part in (text_of(body), text_of(orelse)) if part.strip(f" {UNKNOWN}")]
            return " / ".join(parts) if parts else UNKNOWN
        case None:
            return ""
    return UNKNOWN


def messages_of(tree: ast.AST, names: set[str]) -> Iterator[Message]:
    """What a module raises, in the order of its lines."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name not in names or isinstance(node.args[0], ast.Starred):
            continue
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "todo")]
        todo = given[1] if len(given) > 1 else None
        found.append((node.lineno, Message(name, text_of(node.args[0]), text_of(todo))))
    for _, message in sorted(found, key=lambda entry: entry[0]):
        if sum(sign.isalpha() for sign in message.what) >= SHORTEST:
            yield message


def page() -> str:
    """The whole page."""
    known, names = kinds(), names_of_errors()
    lines = [HEAD, "| error | exit status | meaning |\n|---|---|---|\n"]
    for name, kind in known.items():
        lines.append(f"| `{name}` | {kind.exit_code} | {_first_line(kind)} |\n")
    for package in (name for line in layers() for name in line):
        file = module_file(package)
        folder = SOURCE / package
        modules = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        rows = dict.fromkeys(
            message
            for module in modules
            for message in messages_of(ast.parse(module.read_text(encoding="utf-8")), names)
        )
        if not rows or file is None:
            continue
        lines.append(f"\n## `{package}`: {purpose(file)}\n\n| message | what to do | error |\n|---|---|---|\n")
        lines += [f"| {_cell(row.what)} | {_cell(row.todo)} | `{row.kind}` |\n" for row in rows]
    return "".join(lines)


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0]


def _cell(text: str) -> str:
    shown = cell(text).replace("<", "&lt;")
    while UNKNOWN * 2 in shown:
        shown = shown.replace(UNKNOWN * 2, UNKNOWN)
    return shown


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, page()))
