"""Reads YAML from people and from elsewhere: bounded, without duplicate keys."""

from __future__ import annotations

import re
from typing import Any

import yaml

from stillroom.core.errors import RecipeError

LARGEST = 4 << 20
"""Characters that a file may have."""
MOST_NODES = 200_000
"""Values that a file may hold once its aliases are followed."""
DEEPEST = 100
"""Levels of nesting."""
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
OTHER_BASE = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-9_.]+)+)")
"""Numbers of base 8 and of base 60."""


def load_yaml(text: str, name: str) -> tuple[yaml.Node | None, Any]:
    """The tree of nodes, which knows lines, and the value.

    Raises:
        RecipeError: Not YAML, a key is there twice, or it is too large; names the file and the line.
    """
    if len(text) > LARGEST:
        raise RecipeError(f"{name} has more than {LARGEST:,} characters.", "Such a file is not one for Stillroom.")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _count(node, name, {}, 0) > MOST_NODES:
            raise RecipeError(
                f"{name}: its aliases stand for more than {MOST_NODES:,} values.", "Write the values without aliases."
            )
        _refuse_misread(node, name, set())
        value = _construct(node)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(
            f"{name}, line {line}: not valid YAML: {error.problem}.", "Mind indentation and colons."
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError, AttributeError, LookupError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else "nested too deep"
        raise RecipeError(f"{name}: not valid YAML: {reason}.", "Write it as plain UTF-8 text.") from None
    return node, value


def _construct(node: yaml.Node | None) -> Any:
    """The value of a tree that was composed already: parsing is what takes the time."""
    if node is None:
        return None
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, name: str, known: dict[int, int | None], depth: int) -> int:
    """Values under a node, those behind aliases counted each time; a node that holds itself is refused."""
    line = node.start_mark.line + 1
    if depth > DEEPEST:
        raise RecipeError(f"{name}, line {line}: nested more than {DEEPEST} levels deep.", "Write it flatter.")
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise RecipeError(f"{name}, line {line}: a value holds itself.", "Write it without the alias.")
        return count
    known[id(node)] = None
    total = 1
    if isinstance(node, yaml.MappingNode):
        total += sum(_count(part, name, known, depth + 1) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_count(part, name, known, depth + 1) for part in node.value)
    known[id(node)] = total
    return total


def _refuse_misread(node: yaml.Node | None, name: str, done: set[int]) -> None:
    """Refuse keys that are there twice or are no plain words, and numbers that YAML 1.1 reads in another base than they look:
    ``010`` is 8 there, and ``1:30`` is 90.
    """
    if node is None or id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise RecipeError(f"{name}, line {line}: a key is a list or a mapping.", "Keys are plain words.")
            if key.value in seen:
                raise RecipeError(
                    f"{name}, line {line}: the key `{key.value}` is there twice (first in line {seen[key.value]}).",
                    "Keep one of them.",
                )
            seen[key.value] = line
            _refuse_misread(key, name, done)
            _refuse_misread(value, name, done)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_misread(item, name, done)
    elif isinstance(node, yaml.ScalarNode) and OTHER_BASE.fullmatch(node.value) and node.tag in NUMBERS:
        raise RecipeError(
            f"{name}, line {node.start_mark.line + 1}: `{node.value}` would be read as another number than it looks.",
            "Write the number without leading zeros and colons, or text in quotes.",
        )
