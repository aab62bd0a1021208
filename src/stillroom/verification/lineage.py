"""Where a model came from, through any number of generations, and what a revocation reaches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from stillroom.verification.closed import Closed
from stillroom.verification.documents import Revocation, Short
from stillroom.verification.manifest import Digest


class Ancestor(Closed):
    """A teacher or a dataset that a model learnt from, directly or through its teachers.

    A teacher that was itself packaged goes by several digests: its weights, its exported files, its package. Anyone who revokes
    it may name any of them.
    """

    kind: Literal["teacher", "dataset"]
    name: Short
    digest: Digest
    aliases: tuple[Digest, ...] = ()
    generation: Annotated[int, Field(ge=1, le=1000)]
    """1 for what the model itself learnt from, 2 for what its teachers learnt from, and so on."""


class Identity(Closed):
    """Everything by which a package can be revoked."""

    package: Digest
    ancestors: tuple[Ancestor, ...]

    def digests(self) -> dict[str, frozenset[str]]:
        """By kind of revocation: the digests that reach this package."""
        found: dict[str, set[str]] = {
            "package": {self.package},
            "teacher": set(),
            "dataset": set(),
        }
        for ancestor in self.ancestors:
            found[ancestor.kind] |= {ancestor.digest, *ancestor.aliases}
        return {kind: frozenset(values) for kind, values in found.items()}


def inherit(direct: Iterable[Ancestor], teachers: Iterable[tuple[Ancestor, ...]]) -> tuple[Ancestor, ...]:
    """The ancestors of a new model: what it learnt from, and all that its teachers inherited, one generation further.

    Args:
        direct: Its teachers and datasets.
        teachers: The ancestors of those teachers that are known.
    """
    found: dict[tuple[str, str], Ancestor] = {}
    further = (
        ancestor.model_copy(update={"generation": ancestor.generation + 1})
        for ancestors in teachers
        for ancestor in ancestors
    )
    for ancestor in (*direct, *further):
        known = found.get((ancestor.kind, ancestor.digest))
        if known is None:
            found[ancestor.kind, ancestor.digest] = ancestor
        else:
            aliases = tuple(sorted({*known.aliases, *ancestor.aliases}))
            nearest = min(known.generation, ancestor.generation)
            found[ancestor.kind, ancestor.digest] = known.model_copy(update={"aliases": aliases, "generation": nearest})
    return tuple(sorted(found.values(), key=lambda item: (item.generation, item.kind, item.digest)))


Index = dict[tuple[str, str], Revocation]


def index_of(revocations: Iterable[Revocation]) -> Index:
    """Revocations by kind and digest. Revoked keys are left out: they are evaluated where signatures are counted."""
    return {(entry.kind, entry.value): entry for entry in revocations if entry.kind != "key"}


def reached_by(identity: Identity, index: Index) -> Revocation | None:
    """A revocation that reaches a package, or None."""
    for kind, digests in identity.digests().items():
        for digest in sorted(digests):
            found = index.get((kind, digest))
            if found is not None:
                return found
    return None
