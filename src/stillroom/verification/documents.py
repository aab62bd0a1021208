"""The small documents of trust: a package's policy, a machine's pin, its memory, and lists of revocations.

All are closed: an unknown key is an error.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from stillroom.core import files
from stillroom.verification.closed import Closed
from stillroom.verification.manifest import Digest, Name, Sequence

Kind = Literal["package", "key", "teacher", "dataset"]
Short = Annotated[str, StringConstraints(max_length=500)]
Date = datetime.date
Version = Annotated[str, StringConstraints(pattern=r"^\d{1,4}(\.\d{1,4}){0,3}$")]


class Policy(Closed):
    """``policy.json``: what the publisher asks of anyone who runs the package."""

    format: Literal[1]
    name: Name
    sequence: Sequence
    """Place among the releases of this name; a machine never goes back."""
    released: Date
    minimum_runtime: Version
    """The least version of Stillroom that may run it."""
    offline_grace_days: Annotated[int, Field(ge=0, le=3650)]
    """Days after the expiry of the metadata during which a machine without a connection goes on."""
    at_expiry: Literal["warn", "refuse"]
    """What happens after the grace."""
    dated: tuple[Short, ...] = ()
    """Everything in the package that says when it was made: `FILE#/json/pointer`. The rest follows from the run."""


class Pin(Closed):
    """``trust.json``: what a machine or an application knows before it meets a package. Shipped with it, read-only."""

    format: Literal[1]
    publisher: Name
    root: dict[str, Any]
    """TUF root metadata."""
    repository: Short | None = None
    """Folder or https address of the metadata; without one, revocations cannot reach the machine."""
    least_sequences: dict[Name, Sequence] = Field(default_factory=dict)
    """By package: the least release that this application accepts, whatever the machine remembers."""
    not_before: datetime.datetime
    """The machine's clock cannot be right if it shows an earlier time."""

    def root_bytes(self) -> bytes:
        """The root metadata as a document."""
        return files.canonical_json(self.root)


class Revocation(Closed):
    """One withdrawal."""

    kind: Kind
    value: Digest
    reason: Short
    date: Date
    serial: Annotated[int, Field(ge=1, lt=2**53)]

    @property
    def id(self) -> str:
        """What a reinstatement names."""
        return files.digest_json([self.kind, self.value, self.serial])

    def __str__(self) -> str:
        return f"{self.kind} {self.value[:12]}…, on {self.date}: {self.reason}"


class RevocationList(Closed):
    """``revocations/list.json``, signed by the role revoke."""

    format: Literal[1]
    revocations: Annotated[tuple[Revocation, ...], Field(max_length=1_000_000)]


class Reinstatements(Closed):
    """``reinstatements.json``, signed by the role release."""

    format: Literal[1]
    reinstated: tuple[Digest, ...]


class Release(Closed):
    """One published package."""

    name: Name
    sequence: Sequence
    digest: Digest


class Releases(Closed):
    """``releases.json``, signed by the role release."""

    format: Literal[1]
    releases: tuple[Release, ...]
    least_sequences: dict[Name, Sequence]


class Memory(Closed):
    """What a machine remembers of a publisher, outside any package."""

    format: Literal[1] = 1
    time_floor: datetime.datetime
    """The latest time that is known to have passed."""
    sequences: dict[str, int] = Field(default_factory=dict)
    """By package: the highest release that was verified here."""
    revoked: tuple[Revocation, ...] = ()
    """Every revocation ever seen; it stays when a later list leaves it out."""
    reinstated: tuple[Digest, ...] = ()


RELEASES = "releases.json"


REINSTATEMENTS = "reinstatements.json"


REVOCATIONS = "revocations/list.json"
