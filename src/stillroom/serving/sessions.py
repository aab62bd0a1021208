"""Conversations that are kept, encrypted at rest.

Each session is two files, sealed with AES-256-GCM under one key and bound to the session's number: what was said, and
the engine's state, so that going on needs no reading again. The key is in the user's keyring where there is one, and
otherwise in a file that only the user can read. Without the key nothing of it can be read: purging begins with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import stat
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stillroom.core import files
from stillroom.core.errors import CheckFailed, UsageError

KEY_BYTES = 32
SERVICE = "stillroom-sessions"
LOCK_SECONDS = 5.0
"""How long a writer waits for one of another process."""


class NoSession(UsageError):
    """There is no session of this number."""


class SessionDamaged(CheckFailed):
    """A session that cannot be opened: it was changed, or its key is another."""


@dataclass
class Session:
    """One conversation.

    Attributes:
        id: 32 hex digits.
        name: What the user calls it.
        model: The model's name.
        digest: What identifies the model's file; a state made with another is not used.
        created: Seconds since 1970.
        updated: Seconds since 1970.
        messages: What was said, in the words of the OpenAI API.
        left_out: How many messages no longer fit into the context at the last turn.
        owner: Whose it is: empty for the user's own, else what stands for a key of the server.
    """

    id: str
    name: str
    model: str
    digest: str
    created: float
    updated: float
    messages: list[dict[str, Any]] = field(default_factory=list)
    left_out: int = 0
    owner: str = ""


class SessionStore:
    """The sessions of one user.

    Args:
        folder: Where they are kept.
        keyring: Whether the user's keyring is asked for the key.
    """

    def __init__(self, folder: Path, keyring: bool = True) -> None:
        self.folder = folder
        self._keyring = keyring
        self._key: bytes | None = None
        self._sealed_by: tuple[int, ...] = ()
        self._lock = threading.RLock()
        self._inside = 0
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time, of this process and of others: the same user's sessions may be served by several servers.

        One that was stopped in the middle holds the others up for a while only.
        """
        with self._lock, contextlib.ExitStack() as held:
            if not self._inside:
                held.callback(self._release, self._hold())
            self._inside += 1
            try:
                yield
            finally:
                self._inside -= 1

    def _hold(self) -> int | None:
        """A lock on the folder itself, which leaves no file; None where it is not free in time, or the system has none."""
        if sys.platform == "win32":
            return None
        import fcntl

        until = time.monotonic() + LOCK_SECONDS
        try:
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except OSError as error:
                if not isinstance(error, BlockingIOError) or time.monotonic() > until:
                    os.close(descriptor)
                    return None
            time.sleep(0.002)

    @staticmethod
    def _release(descriptor: int | None) -> None:
        if descriptor is not None:
            os.close(descriptor)

    def turn(self, number: str) -> asyncio.Lock:
        """What a request holds while it adds to a session: one writer at a time."""
        return self._turns.setdefault(number, asyncio.Lock())

    def create(self, name: str, model: str, digest: str, system: str | None = None, owner: str = "") -> Session:
        """A new session, kept at once."""
        now = time.time()
        name = name or time.strftime("%Y-%m-%d %H:%M")
        session = Session(secrets.token_hex(16), name, model, digest, now, now, owner=owner)
        if system:
            session.messages.append({"role": "system", "content": system})
        self.save(session)
        return session

    def save(self, session: Session) -> None:
        """Keep a session as it is now."""
        session.updated = time.time()
        self._seal(self._file(session.id, "session"), session.id, json.dumps(asdict(session)).encode())

    def load(self, number: str, owner: str = "") -> Session:
        """The session of a number.

        Raises:
            NoSession: There is none of this owner's.
            SessionDamaged: It cannot be opened.
        """
        path = self._file(number, "session")
        try:
            found = Session(**json.loads(self._unseal(path, number)))
        except (TypeError, ValueError):
            raise SessionDamaged(f"{path}: another version wrote it.", "Use that version, or delete it.") from None
        if found.owner != owner:
            raise NoSession(f"There is no session {number}.")
        return found

    def append(self, session: Session, messages: Sequence[dict[str, Any]], left_out: int) -> bool:
        """Add to a session what was said; False where it was deleted meanwhile. What else changed in it stays changed."""
        with self._alone():
            try:
                now = self.load(session.id, session.owner)
            except (NoSession, SessionDamaged):
                return False
            now.messages += messages
            now.left_out = left_out
            self.save(now)
            session.messages, session.left_out, session.name = now.messages, left_out, now.name
            return True

    def rename(self, number: str, name: str, owner: str = "") -> Session:
        """Give a session another name. Errors as in :meth:`load`."""
        with self._alone():
            found = self.load(number, owner)
            found.name = name
            self.save(found)
            return found

    def list(self, owner: str = "") -> list[dict[str, Any]]:
        """Number, name, model and times of every session, the latest first; damaged ones are said to be."""
        found = []
        for path in self.folder.glob("*.session"):
            try:
                session = self.load(path.stem, owner)
            except NoSession:
                continue
            except SessionDamaged:
                if not owner:
                    changed = path.lstat().st_mtime if os.path.lexists(path) else 0.0
                    found.append({"id": path.stem, "name": "(damaged)", "damaged": True, "updated": changed})
                continue
            entry = asdict(session)
            entry["messages"] = len(session.messages)
            found.append(entry)
        return sorted(found, key=lambda entry: -float(entry["updated"]))

    def delete(self, number: str, owner: str = "") -> None:
        """Remove a session and its state; a damaged one is the user's own."""
        with self._alone():
            path = self._file(number, "session")
            if not path.is_file():
                raise NoSession(f"There is no session {number}.")
            try:
                self.load(number, owner)
            except SessionDamaged:
                if owner:
                    raise NoSession(f"There is no session {number}.") from None
            path.unlink()
            self._file(number, "state").unlink(missing_ok=True)

    def save_state(self, session: Session, state: bytes, digest: str | None = None) -> None:
        """Keep an engine's state beside a session that is still there.

        Args:
            session: The session.
            state: The state.
            digest: What identifies the file of the model that made it; None is the session's own.
        """
        with self._alone():
            if self._file(session.id, "session").is_file():
                self._seal(self._file(session.id, "state"), session.id + (digest or session.digest), state)

    def load_state(self, session: Session, digest: str) -> bytes | None:
        """The engine's state of a session; None where there is none for this model."""
        path = self._file(session.id, "state")
        if not path.is_file():
            return None
        with contextlib.suppress(SessionDamaged):
            return self._unseal(path, session.id + digest)
        return None

    def purge(self) -> int:
        """Remove the key first, so that nothing can be read from here on, and then every file. Returns how many."""
        with self._alone():
            return self._purged()

    def _purged(self) -> int:
        self._key = None
        backend = self._backend()
        if backend is not None:
            with contextlib.suppress(Exception):
                backend.delete_password(SERVICE, self._owner())
        key = self.folder / "key"
        if key.is_file():
            with contextlib.suppress(OSError):
                key.write_bytes(secrets.token_bytes(KEY_BYTES))
            key.unlink()
        count = 0
        for path in (*self.folder.glob("*.session"), *self.folder.glob("*.state")):
            with contextlib.suppress(OSError):  # a folder in its place is no session, and goes with the rest
                path.unlink()
                count += 1
        return count

    def _file(self, number: str, kind: str) -> Path:
        if len(number) != 32 or not set(number) <= set("0123456789abcdef"):
            raise NoSession("A session's number has 32 hex digits.")
        return self.folder / f"{number}.{kind}"

    def _seal(self, path: Path, bound_to: str, data: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(12)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write_bytes(path, nonce + AESGCM(self._secret()).encrypt(nonce, data, bound_to.encode()))

    def _unseal(self, path: Path, bound_to: str) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            data = _read(path)
        except FileNotFoundError:
            raise NoSession(f"There is no session {path.stem}.") from None
        except OSError as error:
            raise SessionDamaged(
                f"{path} cannot be read: {error.strerror or error}.", "Look at what is there."
            ) from None
        # A keyring that was locked for a while left a key in a file; what was sealed under the keyring's stays readable.
        for key in (self._secret, self._kept):
            with contextlib.suppress(InvalidTag, ValueError):
                return AESGCM(key() or b"").decrypt(data[:12], data[12:], bound_to.encode())
        raise SessionDamaged(
            f"{path}: it was changed, or sealed under another key.",
            "Unlock your keyring if it is locked; otherwise delete it, or bring its key back.",
        )

    def _secret(self) -> bytes:
        # Another process may have purged it: what is kept after that is sealed under the key that is there now.
        if self._key is None or self._sealed_by != _mark(self.folder, self.folder / "key"):
            self._key = self._from_keyring() or self._from_file()
            self._sealed_by = _mark(self.folder, self.folder / "key")
        return self._key

    def _owner(self) -> str:
        return files.digest_bytes(str(self.folder.absolute()).encode())[:16]

    def _backend(self) -> Any:
        if not self._keyring:
            return None
        try:
            import keyring  # type: ignore[import-not-found, unused-ignore]
            from keyring.backends import fail, null  # type: ignore[import-not-found, unused-ignore]

            backend = keyring.get_keyring()
        except Exception:
            return None
        return None if isinstance(backend, fail.Keyring | null.Keyring) else backend

    def _from_keyring(self) -> bytes | None:
        """The keyring's key, made if there is none; None where a file has the key, or the keyring is locked or broken."""
        if (self.folder / "key").is_file():
            return None
        backend = self._backend()
        if backend is None:
            return None
        try:
            if backend.get_password(SERVICE, self._owner()) is None:
                backend.set_password(SERVICE, self._owner(), secrets.token_hex(KEY_BYTES))
        except Exception:
            return None
        return self._kept()

    def _kept(self) -> bytes | None:
        """The key in the keyring; None where there is none, or it cannot be read."""
        backend = self._backend()
        if backend is None:
            return None
        try:
            key = bytes.fromhex(backend.get_password(SERVICE, self._owner()) or "")
        except Exception:
            return None
        return key if len(key) == KEY_BYTES else None

    def _from_file(self) -> bytes:
        path = self.folder / "key"
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
        except FileExistsError:
            pass
        try:
            key = _read(path)
        except OSError as error:
            raise SessionDamaged(
                f"{path} cannot be read: {error.strerror or error}.", "Look at what is there."
            ) from None
        if len(key) != KEY_BYTES:
            raise SessionDamaged(f"{path} is not a key.", "Remove it; sessions sealed under it are lost.")
        return key


def _mark(*paths: Path) -> tuple[int, ...]:
    """What tells a folder or a key from another one that came in its place."""
    found: list[int] = []
    for path in paths:
        try:
            facts = path.stat()
        except OSError:
            found.append(0)
            continue
        found += [facts.st_ino, 0 if path.is_dir() else facts.st_mtime_ns]
    return tuple(found)


def _read(path: Path) -> bytes:
    """A file's bytes. A pipe or a device in its place is not waited for.

    Raises:
        OSError: It cannot be read, or is no file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file")
    with open(descriptor, "rb") as stream:
        return stream.read()
