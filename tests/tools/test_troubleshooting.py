"""The page of errors holds every message that the code can raise."""

from __future__ import annotations

import ast

import pytest

from stillroom.core import errors
from tools.troubleshooting import TARGET, Message, kinds, messages_of, names_of_errors, page, text_of


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ('"plain"', "plain"),
        ('f"{path}: no such file"', "…: no such file"),
        ('"a " + "b"', "a b"),
        ('f"{name} " + ("is" if one else "are") + " here."', "… is / are here."),
        ("message", "…"),
    ],
)
def test_fixed_words_of_a_message(code: str, text: str) -> None:
    assert text_of(ast.parse(code, mode="eval").body) == text


def test_messages_are_found_where_they_are_raised_and_nowhere_else() -> None:
    tree = ast.parse(
        'raise RunError(f"{path} is not a run.", "Give another.")\n'
        'log("this is no error of ours")\n'
        'raise errors.DiskFull("There is no room left here.")\n'
        'raise UsageError(f"{a}: {b}")\n'
    )
    assert list(messages_of(tree, {"RunError", "DiskFull", "UsageError"})) == [
        Message("RunError", "… is not a run.", "Give another."),
        Message("DiskFull", "There is no room left here.", ""),
    ]


def test_every_class_of_the_tree_is_on_the_page_and_classes_of_packages_too() -> None:
    text = page()
    for name, kind in kinds().items():
        assert issubclass(kind, errors.StillroomError)
        assert f"| `{name}` | {kind.exit_code} |" in text
    assert "NoSession" in names_of_errors()
    # A message that people meet often, as it is raised today.
    assert "another process is working on this run" in text
    assert TARGET.name == "troubleshooting.md"
