"""Files and folders that a recipe names to be written: what is there already and is not Stillroom's is not touched."""

from __future__ import annotations

from pathlib import Path

from stillroom.core.errors import RecipeError
from stillroom.recipe.recipe import Recipe
from stillroom.recipe.student import DenseStudent, ShrinkStudent
from stillroom.students.measured import is_measured


def require_paths(recipe: Recipe) -> None:
    """Refuse, before anything is spent, to write where something else is.

    Raises:
        RecipeError: ``capture.path`` is a file, or ``student.importance.path`` is a folder or another kind of file.
    """
    cache = recipe.capture.path
    if isinstance(cache, Path) and cache.exists() and not cache.is_dir():
        raise RecipeError(
            f"`capture.path` is {cache}, which is a file.", "Name a folder: a new one, or one that has a cache."
        )
    if isinstance(recipe.student, (ShrinkStudent, DenseStudent)):
        file = recipe.student.importance.path
        if file is not None and file.exists() and not is_measured(file):
            raise RecipeError(
                f"`student.importance.path` is {file}, which is {'a folder' if file.is_dir() else 'no file of importance'}: "
                "it is not written over.",
                "Name a new file, or one that an earlier run wrote there.",
            )
