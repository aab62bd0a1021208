"""The exact list of a package's files, and the one digest over it.

The list travels as an in-toto statement inside ``package.dsse``. Files above :data:`CHUNK` carry a digest for every piece too,
so that one large file can be checked on all cores; the digest of the whole is there for other tools.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from stillroom.core import files
from stillroom.core.errors import VerificationFailed
from stillroom.verification.closed import Closed, parse_json, validate

SIGNATURE = "package.dsse"
PROVENANCE_SIGNATURE = "provenance.dsse"
OPENSSF_SIGNATURE = "package.oms.sig"
OUTSIDE = (SIGNATURE, PROVENANCE_SIGNATURE, OPENSSF_SIGNATURE)
"""Files of a package that the list does not name: they sign it."""
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "urn:stillroom:package:1"
CHUNK = 8 << 20
MOST_FILES = 10_000
DEEPEST = 64
"""Folders within folders of a package."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Sequence = Annotated[int, Field(ge=1, lt=2**53)]
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")


class Sha256(Closed):
    """A digest the way in-toto writes it."""

    sha256: Digest


class Subject(Closed):
    """One file and its digest, the way in-toto writes it."""

    name: str
    digest: Sha256


class Entry(Closed):
    """What the list says of a file besides its digest."""

    bytes: Annotated[int, Field(ge=0, lt=2**53)]
    chunks: tuple[Digest, ...] = ()


class Predicate(Closed):
    """What is claimed of the files together."""

    name: Name
    sequence: Sequence
    root: Digest
    chunk_bytes: Literal[8388608]
    files: dict[str, Entry]
    openssf_key: str | None


class Statement(Closed):
    """An in-toto statement over the files of a package."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject, ...]
    predicateType: Literal["urn:stillroom:package:1"]  # noqa: N815 - in-toto's word
    predicate: Predicate


class Listed(Closed):
    """A file of the list."""

    name: str
    bytes: int
    sha256: str
    chunks: tuple[str, ...]


class Manifest(Closed):
    """A package's exact list of files.

    Attributes:
        name: The package's name.
        sequence: Its place among the releases of that name.
        files: Every file, sorted by name.
        openssf_key: Public key (PEM) of the OpenSSF bundle beside it, if there is one.
    """

    name: str
    sequence: int
    files: tuple[Listed, ...]
    openssf_key: str | None = None

    @property
    def root(self) -> str:
        """One digest over everything: SHA-256 of the canonical JSON of the list."""
        return files.digest_json([[file.name, file.bytes, file.sha256, list(file.chunks)] for file in self.files])

    def digest_of(self, name: str) -> str | None:
        """The digest of one file, or None where the list has no such file."""
        return next((file.sha256 for file in self.files if file.name == name), None)

    def statement(self) -> bytes:
        """The in-toto statement that is signed."""
        return files.canonical_json(
            {
                "_type": STATEMENT,
                "subject": [{"name": file.name, "digest": {"sha256": file.sha256}} for file in self.files],
                "predicateType": PREDICATE,
                "predicate": {
                    "name": self.name,
                    "sequence": self.sequence,
                    "root": self.root,
                    "chunk_bytes": CHUNK,
                    "files": {file.name: {"bytes": file.bytes, "chunks": list(file.chunks)} for file in self.files},
                    "openssf_key": self.openssf_key,
                },
            }
        )


def parse_statement(data: bytes) -> Manifest:
    """Read a signed statement.

    Raises:
        VerificationFailed: It is not a list of files that Stillroom would write.
    """
    statement = validate(Statement, parse_json(data, "the signed statement"), "the signed statement")
    claimed = statement.predicate
    names = [subject.name for subject in statement.subject]
    if len(names) > MOST_FILES:
        raise VerificationFailed(f"The signed list names more than {MOST_FILES:,} files.", "Get another package.")
    check_names(names)
    if names != sorted(names) or set(names) != claimed.files.keys():
        raise VerificationFailed("The two lists of files in the signed statement differ.", "Get another package.")
    listed = []
    for subject in statement.subject:
        entry = claimed.files[subject.name]
        pieces = _pieces(entry.bytes)
        if len(entry.chunks) != pieces:
            raise VerificationFailed(
                f"The signed list gives {subject.name} {len(entry.chunks)} pieces; its size takes {pieces}.",
                "Get another package.",
            )
        listed.append(Listed(name=subject.name, bytes=entry.bytes, sha256=subject.digest.sha256, chunks=entry.chunks))
    manifest = Manifest(
        name=claimed.name, sequence=claimed.sequence, files=tuple(listed), openssf_key=claimed.openssf_key
    )
    if manifest.root != claimed.root:
        raise VerificationFailed("The root digest is not the digest of the signed list.", "Get another package.")
    return manifest


def make_manifest(folder: Path, name: str, sequence: int, openssf_key: str | None = None) -> Manifest:
    """Digest every file of a package's folder."""
    names = [found for found in walk(folder) if found not in OUTSIDE]
    check_names(names)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        listed = tuple(pool.map(lambda found: _list(folder, found), names))
    return Manifest(name=name, sequence=sequence, files=listed, openssf_key=openssf_key)


def walk(folder: Path) -> list[str]:
    """Names of all files under a folder, sorted. Links, devices, pipes and hidden names are refused.

    Raises:
        VerificationFailed: Names the entry.
    """
    found: list[str] = []

    def visit(inside: Path, prefix: str) -> None:
        if prefix.count("/") > DEEPEST:
            raise VerificationFailed(f"{folder}: folders are nested more than {DEEPEST} deep.", "Remove them.")
        with os.scandir(inside) as listing:
            entries = sorted(itertools.islice(listing, MOST_FILES + len(OUTSIDE) + 1), key=lambda entry: entry.name)
        if len(entries) + len(found) > MOST_FILES + len(OUTSIDE):
            raise VerificationFailed(f"{folder} holds more than {MOST_FILES:,} files.", "Remove what is not listed.")
        if not entries and prefix:
            raise VerificationFailed(f"{inside}: an empty folder is not on the signed list.", "Remove it.")
        for entry in entries:
            name = prefix + entry.name
            if entry.name.startswith("."):
                raise VerificationFailed(f"{folder}: `{name}` is a hidden file.", "A package holds none; remove it.")
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISLNK(mode):
                raise VerificationFailed(f"{folder}: `{name}` is a symbolic link.", "A package holds none; remove it.")
            if stat.S_ISDIR(mode):
                visit(inside / entry.name, f"{name}/")
            elif stat.S_ISREG(mode):
                found.append(name)
            else:
                raise VerificationFailed(f"{folder}: `{name}` is neither file nor folder.", "Remove it.")

    visit(folder, "")
    return sorted(found)


def check_names(names: list[str]) -> None:
    """Refuse names that could leave the folder, hide, or be one and the same on another system.

    Raises:
        VerificationFailed: Names the name.
    """
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        if ".." in parts or name.startswith(("/", "\\")) or ":" in name:
            raise VerificationFailed(f"The name {name[:100]!r} leads out of the package.", "Get another package.")
        for part in parts:
            if part.startswith("."):
                raise VerificationFailed(f"The name {name[:100]!r} is hidden.", "A package holds no hidden files.")
            if not _PART.fullmatch(part) or part.endswith(".") or _RESERVED.match(part):
                raise VerificationFailed(
                    f"The name {name[:100]!r} does not hold on every system.", "Use letters, digits, `.`, `_`, `-`."
                )
        other = seen.get(name.lower())
        seen[name.lower()] = name
        if other == name:
            raise VerificationFailed(f"The name {name!r} is there twice on the list.", "Get another package.")
        if other is not None:
            raise VerificationFailed(
                f"The names {other!r} and {name!r} differ in nothing but case.", "They are one file on other systems."
            )


def require_exact(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder that holds another set of files than the list.

    Raises:
        VerificationFailed: Names the file that was added, removed or renamed.
    """
    found = {name for name in walk(folder) if name not in OUTSIDE}
    check_names(sorted(found))
    listed = {file.name for file in manifest.files}
    missing, added = sorted(listed - found), sorted(found - listed)
    if missing and added:
        raise VerificationFailed(
            f"{folder}: `{missing[0]}` of the signed list is missing and `{added[0]}` is not on it.",
            "A file was renamed or replaced; get the whole package again.",
        )
    if missing:
        raise VerificationFailed(
            f"{folder}: `{missing[0]}` of the signed list is missing.", "Get the whole package again."
        )
    if added:
        raise VerificationFailed(
            f"{folder}: `{added[0]}` is not on the signed list.", "Remove it, or get the package again."
        )


def _pieces(size: int) -> int:
    return -(-size // CHUNK) if size > CHUNK else 0


def _list(folder: Path, name: str) -> Listed:
    whole = hashlib.sha256()
    chunks: list[str] = []
    size = 0
    with open(folder / name, "rb") as stream:
        while data := stream.read(CHUNK):
            whole.update(data)
            chunks.append(files.digest_bytes(data))
            size += len(data)
    return Listed(name=name, bytes=size, sha256=whole.hexdigest(), chunks=tuple(chunks) if size > CHUNK else ())


def describe(manifest: Manifest) -> dict[str, Any]:
    """The list for a reader."""
    return {
        "name": manifest.name,
        "sequence": manifest.sequence,
        "root": manifest.root,
        "files": [{"name": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in manifest.files],
    }
