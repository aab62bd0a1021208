"""What other installed packages add: values named by entry points, loaded when they are needed and checked by type."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from stillroom.core.errors import EnvironmentProblem, first_line

T = TypeVar("T")


def plugin_names(group: str) -> tuple[str, ...]:
    """Names of a group's entry points, sorted; nothing is imported."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def plugins(group: str, kind: type[T]) -> Iterator[tuple[str, T]]:
    """Every value that a group's entry points name, with words for where it comes from.

    Args:
        group: The group, such as ``stillroom.families``.
        kind: What an entry point has to name: one of them, or a tuple of them.

    Raises:
        EnvironmentProblem: An entry point cannot be loaded, or names something else.
    """
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        loaded = load_plugin(point)
        for value in loaded if isinstance(loaded, tuple) else (loaded,):
            if not isinstance(value, kind):
                raise not_a_plugin(point, f"a {kind.__module__}.{kind.__name__} or a tuple of them")
            yield words_of(point), value


def load_plugin(point: EntryPoint) -> Any:
    """What an entry point names.

    Raises:
        EnvironmentProblem: Its module cannot be imported, or has no such name.
    """
    try:
        return point.load()
    except Exception as error:
        raise EnvironmentProblem(
            f"{words_of(point)} cannot be loaded: {first_line(error)}", "Install its package again, or uninstall it."
        ) from error


def not_a_plugin(point: EntryPoint, wanted: str) -> EnvironmentProblem:
    """The error for an entry point that names something else than ``wanted``."""
    return EnvironmentProblem(
        f"{words_of(point)} does not name what it should.", f"It has to name {wanted}; or uninstall its package."
    )


def words_of(point: EntryPoint) -> str:
    """An entry point for messages: its line, its group and the package that declares it."""
    owner = f" of the package {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"The entry point `{point.name} = {point.value}` in the group `{point.group}`{owner}"
