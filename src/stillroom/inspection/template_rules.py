"""What a chat template may not do, read from its syntax. Renders nothing; `template.py` does, behind limits.

A template may not reach behind names with an underscore, may not use the filter ``attr`` and may not include, import or extend
other templates. The sandbox refuses most of it when it happens; a model that tries is refused before.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

from stillroom.core.errors import InspectionRefused

LONGEST = 256 << 10
"""Characters of a template; the longest in use have some thirty thousand."""
_FORMATS = ("format", "format_map")
_REACHING = re.compile(r"(\.|\[|^)\s*_|__\w")


def require_template(template: str, where: str, accepted: Sequence[str] | None = None) -> None:
    """Refuse a chat template that breaks the rules, or is none of those that are accepted.

    Args:
        template: Jinja text.
        where: What messages call it.
        accepted: The teacher's template, or reviewed ones; None accepts every template that keeps the rules.

    Raises:
        InspectionRefused: Names the rule and the line.
    """
    if accepted is not None and template not in accepted:
        raise InspectionRefused(
            f"{where}: the chat template differs from the teacher's (at character {_differs(template, accepted):,}).",
            "A student uses its teacher's template; get the model from its owner again.",
        )
    if len(template) > LONGEST:
        raise InspectionRefused(
            f"{where}: a chat template of {len(template):,} characters, more than {LONGEST:,}.", "Do not use it."
        )
    for line, what in _offences(template):
        raise InspectionRefused(f"{where}: the chat template {what} (line {line}).", "Do not use this template.")


@functools.lru_cache(maxsize=64)
def _offences(template: str) -> tuple[tuple[int, str], ...]:
    import jinja2

    from stillroom.inspection.template_child import make_environment

    try:
        tree = make_environment().parse(template)
        return tuple(_walk(tree))
    except jinja2.TemplateSyntaxError as error:
        return ((error.lineno or 1, f"is not valid: {(error.message or 'syntax error').splitlines()[0][:200]}"),)
    except (RecursionError, MemoryError):
        return ((1, "is nested too deep"),)
    except (ValueError, OverflowError, TypeError, AssertionError, SyntaxError) as error:
        return ((1, f"is not valid: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"),)


def _walk(tree: Any) -> Iterable[tuple[int, str]]:
    from jinja2 import nodes

    queue = [tree]
    while queue:
        node = queue.pop()
        queue.extend(node.iter_child_nodes())
        line = getattr(node, "lineno", 1) or 1
        if isinstance(node, nodes.Include | nodes.Import | nodes.FromImport | nodes.Extends):
            yield line, f"uses {type(node).__name__.lower()}, which reads other templates"
        elif isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
            yield line, f"reaches for `{node.attr[:40]}`, which begins with an underscore"
        elif isinstance(node, nodes.Getitem) and _text(node.arg).startswith("_"):
            yield line, f"reaches for `{_text(node.arg)[:40]}`, which begins with an underscore"
        elif isinstance(node, nodes.Name) and node.name.startswith("__"):
            yield line, f"uses the name `{node.name[:40]}`, which begins with underscores"
        elif isinstance(node, nodes.Filter) and node.name == "attr":
            yield line, "uses the filter `attr`, which reaches past the sandbox's rules"
        elif isinstance(node, nodes.Filter | nodes.Test):
            yield from _arguments(node, line)
        elif _formats(node, nodes):
            yield line, "formats a text that reaches for names with an underscore"


def _formats(node: Any, nodes: Any) -> bool:
    """Whether a call formats a text that is there and reaches for an attribute with an underscore."""
    if not isinstance(node, nodes.Call) or not isinstance(node.node, nodes.Getattr) or node.node.attr not in _FORMATS:
        return False
    return _REACHING.search(_text(node.node.node)) is not None


def _arguments(node: Any, line: int) -> Iterable[tuple[int, str]]:
    """Filters that take the name of an attribute or of another filter: `map`, `selectattr`, `sort` and the like."""
    values = [*(node.args or ()), *(pair.value for pair in (node.kwargs or ()))]
    for value in values:
        text = _text(value)
        if node.name == "map" and text == "attr":
            yield line, "uses the filter `attr`, which reaches past the sandbox's rules"
        if node.name != "replace" and any(part.startswith("__") for part in text.split(".")) and "." not in text[:1]:
            yield line, f"reaches for `{text[:40]}`, which begins with an underscore"


def _text(node: Any) -> str:
    value = getattr(node, "value", None)
    return value if isinstance(value, str) else ""


def _differs(template: str, accepted: Sequence[str]) -> int:
    """The first character that differs from the nearest of those that are accepted."""
    best = 0
    for other in accepted:
        same = next((index for index, (a, b) in enumerate(zip(template, other, strict=False)) if a != b), None)
        best = max(best, min(len(template), len(other)) if same is None else same)
    return best
