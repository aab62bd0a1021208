"""A machine's view of a publisher's repository: fetched with tuf, kept, and read again offline. Evaluates no package.

tuf's own client fetches and stores. What it stored is then read by the same strict path whether a connection was there or not,
so that being offline changes nothing but the freshness.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core.errors import VerificationFailed
from stillroom.core.extras import require
from stillroom.switch import is_on
from stillroom.verification.closed import parse, read_bytes
from stillroom.verification.documents import (
    REINSTATEMENTS,
    RELEASES,
    REVOCATIONS,
    Pin,
    Reinstatements,
    Releases,
    RevocationList,
)

if TYPE_CHECKING:
    from securesystemslib.signer import Key
    from tuf.api.metadata import Metadata, Root
    from tuf.ngclient import FetcherInterface

LARGEST_METADATA = 32 << 20
FETCH_SECONDS = 30.0
"""Longest time that fetching all metadata of a publisher may take."""
LEFT_SECONDS = 3600.0
"""Age at which a folder to fetch into is one that a killed process left."""


@dataclass(frozen=True)
class View:
    """What the metadata says.

    Attributes:
        release_keys: Keys that may sign packages.
        threshold: How many of them must.
        releases: Published packages and least sequences.
        revocations: The present list.
        reinstatements: What the release role took back.
        issued: When the newest timestamp was signed.
        expires: When the first part of the metadata expires.
        fetched: Whether the repository was reached just now.
        trouble: Why it was not, in words.
    """

    release_keys: list[Key]
    threshold: int
    releases: Releases
    revocations: RevocationList
    reinstatements: Reinstatements
    issued: datetime.datetime
    expires: datetime.datetime
    fetched: bool
    trouble: str = ""


def look(
    pin: Pin, folder: Path, repository: str | None = None, own: str | None = None, ahead: Ahead | None = None
) -> View:
    """Fetch what is new, if the repository can be reached, and read what is kept.

    Args:
        pin: What is trusted from the start.
        folder: Where the metadata is kept.
        repository: Read from here instead of the pinned place: a mirror on a medium.
        own: The folder on the publisher's own machine, read where the pinned place cannot be reached.
        ahead: What was fetched from the repository already.

    Raises:
        VerificationFailed: The repository says what cannot be true, or nothing is kept and nothing can be reached.
    """
    if ahead is not None:
        trouble = ahead.settle(folder)
    else:
        trouble = _fetch(pin, folder, repository or pin.repository or "")
    if trouble and own is not None and repository is None:
        trouble = _fetch(pin, folder, own)
    return _read(pin, folder, trouble)


def pinned_keys(pin: Pin) -> tuple[list[Key], int]:
    """Release keys and threshold of the pinned root alone: all there is without a repository."""
    root = _root(pin)
    role = root.signed.roles["targets"]
    return [root.signed.keys[keyid] for keyid in role.keyids], role.threshold


def _fetch(pin: Pin, folder: Path, address: str) -> str:
    """Let tuf's client renew what is kept; returns why the repository could not be reached, or nothing."""
    if not is_far(address):
        return _renew(pin, folder, address)
    return fetch_ahead(pin, folder, address, contextlib.nullcontext()).settle(folder)


def is_far(address: str) -> bool:
    """Whether an address is reached by a network."""
    return "://" in address and not address.startswith("file:")


@dataclass(frozen=True)
class Ahead:
    """Metadata that was fetched beside what is kept, while nothing was locked.

    Attributes:
        made: The folder that holds it.
        before: The timestamp's bytes that were kept when the fetch began.
        answer: Why the repository could not be reached, nothing, or what was wrong with what it sent.
    """

    made: Path
    before: bytes
    answer: str | BaseException

    def settle(self, folder: Path) -> str:
        """Put it in the place of what is kept; under the lock of what is kept. Returns why it could not be fetched, or nothing.

        Raises:
            VerificationFailed: The repository said what cannot be true.
        """
        try:
            if isinstance(self.answer, BaseException):
                raise self.answer
            # Where somebody else was quicker, theirs stays: it is as new, and nothing that is kept becomes older.
            if self.answer == "" and _timestamp(folder) == self.before:
                _take_over(self.made / folder.name, folder)
            return self.answer
        finally:
            shutil.rmtree(self.made, ignore_errors=True)


def fetch_ahead(pin: Pin, folder: Path, address: str, lock: contextlib.AbstractContextManager[Any]) -> Ahead:
    """Fetch from a network beside what is kept. All of it may take :data:`FETCH_SECONDS`.

    A mirror that sends one byte per second counts as unreachable; no one waits for it longer, and no one else meanwhile.

    Args:
        pin: What is trusted from the start.
        folder: Where the metadata is kept.
        address: The repository.
        lock: Held while what is kept is copied, and not while anything is fetched.

    Nothing is fetched while the owner's switch blocks downloads: that counts as a repository that cannot be reached.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    blocked = "" if is_on("downloads") else "the owner's switch blocks downloads"
    for left in folder.parent.glob("fetch-*"):
        # Of a process that was killed meanwhile.
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(left)
    made = Path(tempfile.mkdtemp(prefix="fetch-", dir=folder.parent))
    found: list[str | BaseException] = []

    def work() -> None:
        try:
            found.append(_renew(pin, made / folder.name, address))
        except BaseException as error:
            found.append(error)

    with lock:
        before = _timestamp(folder)
        if folder.is_dir():
            shutil.copytree(folder, made / folder.name, symlinks=True)
    if blocked:
        return Ahead(made, before, blocked)
    # A thread, since neither tuf nor what it fetches with ends a transfer that goes on for ever. It writes to a folder of its
    # own, so that what it does after its time is over changes nothing.
    thread = threading.Thread(target=work, name="fetch", daemon=True)
    thread.start()
    thread.join(FETCH_SECONDS)
    late = f"{address} did not send its metadata within {FETCH_SECONDS:.0f} seconds"
    return Ahead(made, before, found[0] if found else late)


def _timestamp(folder: Path) -> bytes:
    path = folder / "timestamp.json"
    return path.read_bytes() if path.is_file() else b""


def _take_over(fetched: Path, folder: Path) -> None:
    """Put what was fetched in the place of what is kept, file by file; what is read is evaluated anew in any case."""
    for path in sorted(fetched.rglob("*")):
        target = folder / path.relative_to(fetched)
        if path.is_dir() and not path.is_symlink():
            target.mkdir(parents=True, exist_ok=True)
        elif path.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.partial")
            beside.unlink(missing_ok=True)
            beside.symlink_to(path.readlink())
            os.replace(beside, target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


def _renew(pin: Pin, folder: Path, address: str) -> str:
    require("trust", "A publisher's metadata needs packages that are not installed: {}.")
    from tuf.api.exceptions import DownloadError, RepositoryError
    from tuf.ngclient import Updater, UpdaterConfig

    base = address if "://" in address else Path(address).absolute().as_uri()
    targets = folder / "targets"
    targets.mkdir(parents=True, exist_ok=True)
    try:
        updater = Updater(
            metadata_dir=str(folder),
            metadata_base_url=f"{base}/metadata/",
            target_dir=str(targets),
            target_base_url=f"{base}/targets/",
            fetcher=_fetcher(base),
            config=UpdaterConfig(
                root_max_length=LARGEST_METADATA,
                timestamp_max_length=1 << 20,
                snapshot_max_length=LARGEST_METADATA,
                targets_max_length=LARGEST_METADATA,
            ),
            bootstrap=pin.root_bytes(),
        )
        updater.refresh()
        for path in (RELEASES, REINSTATEMENTS, REVOCATIONS):
            info = updater.get_targetinfo(path)
            if info is None:
                raise VerificationFailed(f"{address}: the metadata names no {path}.", "Ask the publisher.")
            if updater.find_cached_target(info) is None:
                updater.download_target(info)
    except DownloadError as error:
        reason = str(error) or str(error.__cause__ or "") or type(error).__name__
        return f"{address} cannot be reached ({reason})"
    except RepositoryError as error:
        raise _explain(error, address) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{address} cannot be read ({error})"
    return ""


def _explain(error: Exception, address: str) -> VerificationFailed:
    """Tuf's refusal in words that say which attack it looks like."""
    from tuf.api import exceptions

    text = str(error)
    if isinstance(error, exceptions.ExpiredMetadataError):
        what, todo = (
            "its metadata has expired: somebody holds back newer metadata, or no one renewed it",
            ("Ask the publisher to renew it (`stillroom repo refresh`), or use another mirror."),
        )
    elif isinstance(error, exceptions.BadVersionNumberError):
        what, todo = (
            "its metadata is older than what was seen before, or of another version than announced",
            ("This looks like a rollback; use another mirror."),
        )
    elif isinstance(error, exceptions.UnsignedMetadataError):
        what, todo = "its metadata is not signed by enough trusted keys", "Do not use this mirror; ask the publisher."
    elif isinstance(error, exceptions.LengthOrHashMismatchError):
        what, todo = "its parts do not belong together", "This looks like a mix of several states; use another mirror."
    else:
        what, todo = "its metadata cannot be read", "Do not use this mirror; ask the publisher."
    return VerificationFailed(f"{address}: {what} ({text[:300]}).", todo)


def _fetcher(base: str) -> FetcherInterface | None:
    """Tuf's own fetcher for the web, and one for folders."""
    if not base.startswith("file:"):
        return None
    from tuf.api.exceptions import DownloadError, DownloadHTTPError
    from tuf.ngclient import FetcherInterface

    class FolderFetcher(FetcherInterface):
        """Reads a repository from a folder; a missing file is what a web server would answer 404 to."""

        def _fetch(self, url: str) -> Iterator[bytes]:
            path = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
            root = Path(urllib.parse.unquote(urllib.parse.urlsplit(base).path))
            if not root.is_dir():
                raise DownloadError(f"no folder {root}")
            if not path.is_file():
                raise DownloadHTTPError(f"no file {path.name}", 404)
            with open(path, "rb") as stream:
                while data := stream.read(1 << 20):
                    yield data

    return FolderFetcher()


def _root(pin: Pin) -> Metadata[Root]:
    require("trust", "A publisher's metadata needs packages that are not installed: {}.")
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    try:
        root = Metadata[Root].from_bytes(pin.root_bytes())
        root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    except (RepositoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationFailed(
            f"The pinned root of {pin.publisher} is not valid ({str(error)[:200]}).", "Pin the right trust.json."
        ) from None
    return root


def _read(pin: Pin, folder: Path, trouble: str) -> View:
    """Verify what is kept, from the pinned root on; expiry is reported, not evaluated."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata

    if not (folder / "timestamp.json").is_file():
        raise VerificationFailed(
            f"Nothing is known yet of what {pin.publisher} has revoked: {trouble or 'no metadata is kept'}.",
            "Connect once, or bring the repository on a medium: stillroom verify PACKAGE --repository FOLDER.",
        )
    try:
        root = _root(pin)
        while (following := folder / "root_history" / f"{root.signed.version + 1}.root.json").is_file():
            following_root = Metadata.from_bytes(read_bytes(following))
            root.signed.verify_delegate("root", following_root.signed_bytes, following_root.signatures)
            following_root.signed.verify_delegate("root", following_root.signed_bytes, following_root.signatures)
            if following_root.signed.version != root.signed.version + 1:
                raise VerificationFailed(f"{following} has another version than its name.", "Remove it.")
            root = following_root
        parts: dict[str, Metadata[Any]] = {"root": root}
        above: Metadata[Any] = root
        for role in ("timestamp", "snapshot", "targets", "revoke"):
            data = read_bytes(folder / f"{role}.json")
            if role == "snapshot":
                parts["timestamp"].signed.snapshot_meta.verify_length_and_hashes(data)
            elif role in ("targets", "revoke"):
                parts["snapshot"].signed.meta[f"{role}.json"].verify_length_and_hashes(data)
            parts[role] = Metadata.from_bytes(data)
            above = parts["targets"] if role == "revoke" else root
            above.signed.verify_delegate(role, parts[role].signed_bytes, parts[role].signatures)
        documents = {}
        for role, path in (("targets", RELEASES), ("targets", REINSTATEMENTS), ("revoke", REVOCATIONS)):
            documents[path] = read_bytes(folder / "targets" / urllib.parse.quote(path, ""))
            parts[role].signed.targets[path].verify_length_and_hashes(documents[path])
        issued = datetime.datetime.fromisoformat(parts["timestamp"].signed.unrecognized_fields["x-stillroom-issued"])
    except VerificationFailed:
        raise
    except (RepositoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationFailed(
            f"{folder}: the kept metadata of {pin.publisher} does not verify ({str(error)[:200]}).",
            "Remove this folder, connect, and verify again.",
        ) from None
    keys = [root.signed.keys[keyid] for keyid in root.signed.roles["targets"].keyids]
    return View(
        release_keys=keys,
        threshold=root.signed.roles["targets"].threshold,
        releases=parse(Releases, documents[RELEASES], RELEASES),
        revocations=parse(RevocationList, documents[REVOCATIONS], REVOCATIONS),
        reinstatements=parse(Reinstatements, documents[REINSTATEMENTS], REINSTATEMENTS),
        issued=issued,
        expires=min(part.signed.expires for part in parts.values()),
        fetched=not trouble,
        trouble=trouble,
    )
