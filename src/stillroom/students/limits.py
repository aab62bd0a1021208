"""What a device allows, from a recipe's target and a table of device profiles."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillroom.core.errors import RecipeError
from stillroom.recipe.gguf_type import GgufType
from stillroom.recipe.student import Target
from stillroom.students.shape import Anatomy, Shape

DECODING_SHARE = 0.6
"""Share of the measured read bandwidth that decoding reaches."""


class Profile(BaseModel):
    """A device: what it allows, and how fast it reads memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: str
    memory_bytes: int = Field(gt=0)
    file_bytes: int = Field(gt=0)
    bandwidth: float = Field(gt=0)
    context: int = Field(gt=0)
    quantisation: GgufType


@dataclass(frozen=True)
class Limits:
    """Everything that has to hold; None where nothing is asked.

    Attributes:
        parameters: At most.
        file_bytes: At most.
        memory_bytes: At most.
        decode_tokens_per_second: At least.
        quantisation: GGUF type that bytes are counted in.
        context: Tokens of context.
        bandwidth: Bytes per second that decoding reads.
    """

    parameters: int | None
    file_bytes: int | None
    memory_bytes: int | None
    decode_tokens_per_second: float | None
    quantisation: str
    context: int
    bandwidth: float

    def measure(self, anatomy: Anatomy, shape: Shape) -> dict[str, float]:
        """What a shape takes, by the names of the limits."""
        quantisation, context = self.quantisation, self.context
        return {
            "parameters": anatomy.parameters(shape),
            "file_bytes": anatomy.file_bytes(shape, quantisation),
            "memory_bytes": anatomy.memory_bytes(shape, quantisation, context),
            "decode_tokens_per_second": anatomy.decode_rate(shape, quantisation, context, self.bandwidth),
        }

    def broken(self, measured: dict[str, float]) -> list[str]:
        """Names of the limits that what was measured breaks."""
        found = []
        for name, value in measured.items():
            limit = getattr(self, name)
            if limit is not None and (value < limit if name == "decode_tokens_per_second" else value > limit):
                found.append(name)
        return found


def limits_of(target: Target) -> Limits:
    """A recipe's target and its device's profile together: of each limit the tighter one.

    Raises:
        RecipeError: The device or the file of profiles is not known.
    """
    profile = None
    if target.device is not None:
        known = load_profiles(target.profiles)
        if target.device not in known:
            raise RecipeError(
                f"`student.target.device`: {target.device!r} is not a known device.",
                f"Known: {', '.join(sorted(known))}.",
            )
        profile = known[target.device]
    elif target.profiles is not None:
        load_profiles(target.profiles)

    def tighter(asked: int | None, allowed: int | None) -> int | None:
        there = [value for value in (asked, allowed) if value is not None]
        return min(there) if there else None

    bandwidth = float("inf")
    if target.decode_tokens_per_second is not None:
        bandwidth = profile.bandwidth if profile else measure_bandwidth() * DECODING_SHARE
    return Limits(
        target.parameters,
        tighter(target.file_bytes, profile.file_bytes if profile else None),
        tighter(target.memory_bytes, profile.memory_bytes if profile else None),
        target.decode_tokens_per_second,
        target.quantisation or (profile.quantisation if profile else "Q8_0"),
        target.context or (profile.context if profile else 2048),
        bandwidth,
    )


def load_profiles(own: Path | None = None) -> dict[str, Profile]:
    """The table of devices, with those of a file of one's own over it.

    Raises:
        RecipeError: The file is missing or not such a table; names the entry.
    """
    table = _read(
        resources("stillroom.students").joinpath("profiles.yaml").read_text(encoding="utf-8"), "profiles.yaml"
    )
    if own is not None:
        try:
            text = own.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{own}: the device profiles cannot be read: {error}.", "Give a YAML file.") from None
        table |= _read(text, str(own))
    return table


def _read(text: str, name: str) -> dict[str, Profile]:
    try:
        content: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(
            f"{name}: not valid YAML: {str(error).splitlines()[0]}.", "Mind indentation and colons."
        ) from None
    if not isinstance(content, dict):
        raise RecipeError(f"{name}: device profiles are a mapping of names to profiles.", "docs/shrink.md shows one.")
    table = {}
    for device, values in content.items():
        try:
            table[str(device)] = Profile.model_validate(values)
        except ValidationError as error:
            mistake = error.errors()[0]
            key = ".".join(map(str, mistake["loc"]))
            raise RecipeError(
                f"{name}: `{device}.{key}`: {mistake['msg']}.", f"Keys of a profile: {', '.join(Profile.model_fields)}."
            ) from None
    return table


def measure_bandwidth(seconds: float = 0.4) -> float:
    """Bytes per second that this machine reads from memory with all its threads, as a matrix-vector product reads
    weights.
    """
    import torch

    # Far larger than any cache, so that every pass comes from memory.
    matrix = torch.ones(32_768, 2048)
    vector = torch.ones(2048)
    best = 0.0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        matrix @ vector
        best = max(best, matrix.numel() * matrix.element_size() / (time.perf_counter() - started))
    return best
