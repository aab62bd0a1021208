"""Bytes at a path or a URL: a local folder, or an object store (S3, Google Cloud Storage, Azure) through obstore.

Several processes on several machines write into one store at the same time, so an object is put only where its key is free
(:meth:`Store.put_new`): the first writer wins, and the others are told. An object appears whole or not at all.

Credentials come from the environment or from the machine's own role, as each provider's tools take them (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, …), never from a recipe or a URL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from stillroom.core import files
from stillroom.core.errors import EnvironmentProblem, UsageError
from stillroom.core.extras import require
from stillroom.core.store_clients import Clients

LOCK = ".put.lock"
"""A file beside what is put, on file systems without hard links."""

SCHEMES = ("s3", "gs", "az", "abfs")
"""Schemes of object stores."""
TRIES = 5
"""How often a put is tried whose unfinished file another process removed."""
PART_BYTES = 8 << 20
"""Least bytes of a part in which a file is sent, and bytes of each in which one is read."""
MOST_PARTS = 9_000
"""Parts of a file; object stores take 10,000."""
PARTS_AT_ONCE = 4
"""Parts of a file that are sent at the same time."""
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_QUERY = re.compile(r"(https?://[^\s?]*)\?[^\s)\"']*", re.IGNORECASE)
_SECRET = re.compile(r"key|secret|token|password|credential|sig", re.IGNORECASE)


class Store(Protocol):
    """Bytes by key; a key is a relative path with ``/``."""

    @property
    def where(self) -> str:
        """The folder or URL, for messages and for :func:`open_store`."""
        ...

    def put_new(self, key: str, data: bytes) -> bool:
        """Put an object where the key is free; returns whether it was."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Put an object, replacing what is there."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Put a file of any size, which is not held in memory, replacing what is there."""
        ...

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        ...

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` (excluded) of an object.

        Raises:
            FileNotFoundError: There is none.
        """
        ...

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Keys below the folder ``prefix``, sorted."""
        ...

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        ...


def is_url(where: str | os.PathLike[str]) -> bool:
    """Whether this names an object store and not a path."""
    return isinstance(where, str) and _URL.match(where) is not None


def check_url(where: str) -> str:
    """Refuse a URL of a store that is not known, or that carries a secret.

    Raises:
        UsageError: The URL cannot be taken; the message does not repeat it where it carries a secret.
    """
    parts = urlsplit(where)
    if parts.scheme.lower() not in SCHEMES:
        raise UsageError(
            f"{parts.scheme}://…: not an object store that is known.",
            f"Write {', '.join(f'{scheme}://' for scheme in SCHEMES)} with a bucket, or a path.",
        )
    if "@" in parts.netloc or _SECRET.search(parts.query) or _SECRET.search(parts.fragment):
        raise UsageError(
            f"The URL of the bucket at {parts.scheme}:// carries credentials.",
            "Take them out of it, and set them in the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
    if not parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"{parts.scheme}://{parts.netloc}{parts.path}: not a bucket with a path.",
            f"Write {parts.scheme}://bucket/path.",
        )
    return where


def open_store(where: str | os.PathLike[str]) -> Store:
    """The store at a path or a URL.

    Raises:
        UsageError: The URL cannot be taken.
        MissingDependency: obstore is not installed.
        EnvironmentProblem: The store cannot be opened, as where there are no credentials.
    """
    if not is_url(where):
        return LocalStore(Path(where))
    url = check_url(str(where))
    require("store", f"{url}: an object store is reached with {{}}, which is not installed.")
    try:
        return ObjectStore(url, Clients(url))
    except Exception as error:
        raise _failed(url, error) from None


def read_file(store: Store, key: str, path: Path, size: int) -> None:
    """Write the first ``size`` bytes of an object into a file, without holding them in memory.

    Raises:
        FileNotFoundError: There is no such object.
    """
    with open(path, "wb") as stream:
        for start in range(0, size, PART_BYTES):
            stream.write(store.get_range(key, start, min(size, start + PART_BYTES)))


def probe(store: Store) -> None:
    """Put a small object, read it, see that it cannot be put again, and remove it.

    Raises:
        EnvironmentProblem: The store cannot be used; the message names it and what failed.
    """
    key, data = f"probe-{uuid.uuid4().hex}", os.urandom(64)
    try:
        first = store.put_new(key, data)
        found = store.get(key)
        again = store.put_new(key, b"")
        store.remove(key)
    except OSError as error:
        raise EnvironmentProblem(
            f"{store.where}: nothing can be written there: {error.strerror or error}.",
            "Check the path and its permissions.",
        ) from None
    if not first or found != data or again:
        what = "what was put is not read again" if found != data else "an object can be put where there is one"
        raise EnvironmentProblem(
            f"{store.where}: {what}.",
            "Use a store that has conditional puts (`If-None-Match: *`) and reads what it wrote.",
        )


class LocalStore:
    """A folder. An object is written beside its place and linked there, which fails where the name is taken.

    Args:
        folder: The folder; it is made when something is put.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def where(self) -> str:
        """See :attr:`Store.where`."""
        return str(self.folder)

    def put_new(self, key: str, data: bytes) -> bool:
        """See :meth:`Store.put_new`."""
        target = self.folder / key
        if target.exists():
            return False
        for attempt in range(TRIES):
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
            try:
                with open(beside, "xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                placed = _link(beside, target)
            except FileNotFoundError:
                # Another process cleared what killed ones had left, and took this for it.
                if attempt == TRIES - 1:
                    raise
                continue
            finally:
                beside.unlink(missing_ok=True)
            break
        files.sync_folder(target.parent)
        return placed

    def put(self, key: str, data: bytes) -> None:
        """See :meth:`Store.put`."""
        files.write_bytes(self.folder / key, data)

    def put_file(self, key: str, path: Path) -> None:
        """See :meth:`Store.put_file`."""
        with files.replacing(self.folder / key) as beside:
            shutil.copyfile(path, beside)

    def get(self, key: str) -> bytes | None:
        """See :meth:`Store.get`."""
        try:
            return (self.folder / key).read_bytes()
        except FileNotFoundError:
            return None

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """See :meth:`Store.get_range`."""
        with open(self.folder / key, "rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    def size(self, key: str) -> int | None:
        """See :meth:`Store.size`."""
        try:
            return (self.folder / key).stat().st_size
        except FileNotFoundError:
            return None

    def names(self, prefix: str) -> list[str]:
        """See :meth:`Store.names`."""
        found = (
            path
            for path in (self.folder / prefix).rglob("*")
            if not path.name.endswith(".partial") and path.name != LOCK
        )
        return sorted(path.relative_to(self.folder).as_posix() for path in found if path.is_file())

    def remove(self, key: str) -> None:
        """See :meth:`Store.remove`."""
        (self.folder / key).unlink(missing_ok=True)


def _link(beside: Path, target: Path) -> bool:
    """Give a whole file its name, unless that is taken."""
    try:
        os.link(beside, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
        # A file system without hard links: one process at a time looks and renames.
        from filelock import FileLock

        with FileLock(target.with_name(LOCK)):
            if target.exists():
                return False
            os.rename(beside, target)
    return True


class ObjectStore:
    """An object store behind obstore, which retries what a store answers with "later" (HTTP 429, 5xx, a connection reset).

    Args:
        url: Where it is, for messages.
        clients: Of obstore.
    """

    def __init__(self, url: str, clients: Clients) -> None:
        self._url = url.rstrip("/")
        self._clients = clients
        clients.reading()

    @property
    def where(self) -> str:
        """See :attr:`Store.where`."""
        return self._url

    def put_new(self, key: str, data: bytes) -> bool:
        """See :meth:`Store.put_new`: a put with ``If-None-Match: *``, in one request, so that it is exclusive at any size."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._named(key):
            try:
                obstore.put(self._clients.writing(len(data)), key, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """See :meth:`Store.put`."""
        import obstore

        with self._named(key):
            obstore.put(self._clients.writing(len(data)), key, data)

    def put_file(self, key: str, path: Path) -> None:
        """See :meth:`Store.put_file`: in parts, several at a time."""
        import obstore

        size = path.stat().st_size
        part = max(PART_BYTES, -(-size // MOST_PARTS))
        with self._named(key):
            client = self._clients.writing(min(size, PARTS_AT_ONCE * part))
            obstore.put(client, key, path, chunk_size=part, max_concurrency=PARTS_AT_ONCE)

    def get(self, key: str) -> bytes | None:
        """See :meth:`Store.get`."""
        import obstore

        with self._named(key):
            try:
                return bytes(obstore.get(self._clients.reading(), key).bytes())
            except FileNotFoundError:
                return None

    def get_range(self, key: str, start: int, end: int) -> bytes:
        """See :meth:`Store.get_range`."""
        import obstore

        if end <= start:
            return b""
        with self._named(key):
            return bytes(obstore.get_range(self._clients.reading(), key, start=start, end=end))

    def size(self, key: str) -> int | None:
        """See :meth:`Store.size`."""
        import obstore

        with self._named(key):
            try:
                return int(obstore.head(self._clients.reading(), key)["size"])
            except FileNotFoundError:
                return None

    def names(self, prefix: str) -> list[str]:
        """See :meth:`Store.names`."""
        import obstore

        with self._named(prefix):
            return sorted(
                str(entry["path"]) for page in obstore.list(self._clients.reading(), prefix=prefix) for entry in page
            )

    def remove(self, key: str) -> None:
        """See :meth:`Store.remove`."""
        import obstore

        with self._named(key), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._clients.writing(), key)

    @contextlib.contextmanager
    def _named(self, key: str) -> Iterator[None]:
        """Turn a failure of the store into a message that names the object."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as error:
            raise _failed(f"{self._url}/{key}", error) from None


def _failed(where: str, error: Exception) -> EnvironmentProblem:
    """What a store's failure means; of the library's words only the first line, without the query of a request's URL, where
    Azure has its shared access signatures.
    """
    first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")
    first = _QUERY.sub(r"\1?…", first)
    return EnvironmentProblem(
        f"{where}: the object store did not answer as it should: {first}.",
        "Check the bucket's name, the network, and the credentials in the environment (for S3 AWS_ACCESS_KEY_ID, "
        "AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL); then give the same command again.",
    )
