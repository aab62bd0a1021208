"""Which type of file a target asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.core.errors import RecipeError
from stillroom.recipe.export import ChooseConfig

if TYPE_CHECKING:
    from stillroom.models.types import ModelConfig
    from stillroom.students.limits import Profile

CACHE_BYTES = 2
"""Bytes of one number in the runtime's KV cache."""


def byte_limit(choice: ChooseConfig, config: ModelConfig) -> int | None:
    """Most bytes that the file may have: the recipe's limit and the device's, of which the tighter holds.

    Args:
        choice: The recipe's section.
        config: The student's config.

    Raises:
        RecipeError: The device or the file of profiles is not known.
    """
    limits = [choice.file_bytes] if choice.file_bytes is not None else []
    profile = device_of(choice)
    if profile is not None:
        limits += [profile.file_bytes, profile.memory_bytes - cache_bytes(config, profile.context)]
    return min(limits) if limits else None


def device_of(choice: ChooseConfig) -> Profile | None:
    """The profile of the device that the recipe names. Errors as in :func:`byte_limit`."""
    if choice.device is None and choice.profiles is None:
        return None
    from stillroom.students.limits import load_profiles

    known = load_profiles(choice.profiles)
    if choice.device is None:
        return None
    if choice.device not in known:
        raise RecipeError(
            f"`export.choose.device`: {choice.device!r} is not a known device.",
            f"Known: {', '.join(sorted(known))}.",
        )
    return known[choice.device]


def cache_bytes(config: ModelConfig, context: int) -> int:
    """Bytes of the KV cache of a full context."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return int(2 * config.num_hidden_layers * groups * width * context * CACHE_BYTES)


def candidates(choice: ChooseConfig, sizes: dict[str, int], limit: int | None) -> list[str]:
    """Types that fit, in the order in which they are to be tried; the first that passes its check is the choice.

    Args:
        choice: The recipe's section.
        sizes: Bytes of the file of each type.
        limit: Most bytes that the file may have.
    """
    fitting = [kind for kind in dict.fromkeys(choice.among) if limit is None or sizes[kind] <= limit]
    return sorted(fitting, key=lambda kind: sizes[kind], reverse=choice.max_kl is None)
