"""The first lines of a model card, in which its owner states licence and origin for programs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stillroom.core.strict_yaml import load_yaml


def front_matter(text: str, name: str) -> dict[str, Any]:
    """What a card states between the two lines ``---`` that it begins with; empty where it has none.

    Raises:
        RecipeError: It is no YAML; names the line.
    """
    found = re.match(r"---\s*\n(.*?)\n---", text.removeprefix("\ufeff"), re.DOTALL)
    card = load_yaml(found.group(1), name)[1] if found is not None else None
    return card if isinstance(card, dict) else {}


def licences_of(card: Mapping[str, Any]) -> list[str]:
    """The licences that a card states; of `other`, the name that it gives."""
    stated = card.get("license")
    named = card.get("license_name")
    found = []
    for licence in stated if isinstance(stated, list) else [stated]:
        other = str(licence).lower() == "other" and isinstance(named, str)
        text = named if other else licence
        if isinstance(text, str) and text.strip():
            found.append(text.strip())
    return found
