"""What the switch says, and writing it.

The state is two equal files, each replaced atomically; one that says off, or that cannot be read, is enough for off.
A file that was never written says nothing: a fresh installation is on. The administrator's policy can only close.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stillroom.core import files
from stillroom.core.errors import NotWritable, SwitchedOff, UsageError
from stillroom.core.strict_json import read_strict
from stillroom.switch.places import Places

Feature = Literal["available", "enabled", "blocked"]
FEATURES = {
    "engine": "running a model at all",
    "chat": "the chat page and `stillroom chat`",
    "api": "the OpenAI-compatible endpoints",
    "tools": "tool calls",
    "sessions": "conversations that are kept",
    "embeddings": "embeddings of text",
    "downloads": "fetching lists of revocations, and models and data sets by their names",
}
"""Features that exist today. One that is not named here is governed all the same."""
FORMAT = 1
LONGEST = 1 << 16
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""What a feature of any version may be called."""
MOST_FEATURES = 256
LOCK_SECONDS = 0.1
"""How long a writer waits for another one. After that it writes all the same: nothing may hold up `off`."""


@dataclass(frozen=True)
class State:
    """What holds now.

    Attributes:
        on: Whether anything may run.
        held_by: Who holds it: ``nobody``, ``user``, ``administrator``, or ``damage`` for a state that cannot be read.
        reason: One sentence for the user.
        features: What was said of single features, by name.
        policy: The features that the administrator blocks.
        changed: Seconds since 1970 of the last change; 0 if there was none.
    """

    on: bool
    held_by: str
    reason: str
    features: dict[str, Feature] = field(default_factory=dict)
    policy: frozenset[str] = frozenset()
    changed: float = 0.0

    def feature(self, name: str) -> Feature:
        """Whether a feature is available, enabled or blocked. A new feature is blocked while everything is."""
        if not self.on or name in self.policy or self.features.get("engine") == "blocked":
            return "blocked"
        return self.features.get(name, "available")


class Switch:
    """One user's switch.

    Args:
        places: Its files; None takes those of the user whose process this is.
    """

    def __init__(self, places: Places | None = None) -> None:
        self.places = places or Places.of_user()
        self._seen: tuple[tuple[object, ...], State] | None = None
        self._inside = threading.local()

    def state(self) -> State:
        """What the switch says now. Cheap enough for every token: files are read only when they have changed."""
        marks = tuple(_mark(path) for path in (*self.places.switches, self.places.policy))
        if self._seen is None or self._seen[0] != marks:
            # A file replaced while it was read has another mark at the next look, and is read again then.
            try:
                found = self._read()
            except Exception as error:  # whatever it is: what cannot be read means off
                found = State(False, "damage", f"its state cannot be read ({_short(error)}), and that means off.")
            self._seen = (marks, found)
        return self._seen[1]

    def is_on(self, feature: str = "engine") -> bool:
        """Whether a feature may be used now."""
        return self.state().feature(feature) != "blocked"

    def require_on(self, feature: str = "engine") -> None:
        """Refuse where a feature is blocked.

        Raises:
            SwitchedOff: Says who holds it and what to do.
        """
        state = self.state()
        if state.feature(feature) != "blocked":
            return
        if not state.on:
            todo = "Turn it on: stillroom on"
            if state.held_by == "administrator":
                todo = f"The administrator's policy holds it: {self.places.policy}"
            raise SwitchedOff(f"The switch is off: {state.reason}", todo)
        if name := next((name for name in (feature, "engine") if name in state.policy), None):
            raise SwitchedOff(
                f"The administrator has blocked `{name}`.", f"The policy that holds it is {self.places.policy}"
            )
        name = feature if state.features.get(feature) == "blocked" else "engine"
        raise SwitchedOff(f"`{name}` is blocked.", f"Allow it: stillroom on --feature {name}")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One writer at a time: what is read inside is what the others have written whole.

        Without it a feature that is set while `off` is given could write back the "on" that it had read before.
        """
        if sys.platform == "win32" or getattr(self._inside, "writes", False):
            yield
            return
        import fcntl

        handle: int | None = None
        until = time.monotonic() + LOCK_SECONDS
        with contextlib.suppress(OSError):
            clear_way(self.places.state)
            self.places.state.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            handle = os.open(self.places.state / "switch.lock", flags, 0o600)
        try:
            while handle is not None and time.monotonic() < until:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.0005)
                except OSError:  # a file system without locks
                    break
            # Of this thread alone: one that did not get the lock may be inside beside the one that has it.
            self._inside.writes = True
            try:
                yield
            finally:
                self._inside.writes = False
        finally:
            if handle is not None:
                os.close(handle)

    def hold_off(self, settle: bool = True) -> None:
        """Keep "off" in both files, unless they have it.

        Args:
            settle: Flush them to disk. Without, every process sees them at once; :meth:`settle` is to follow.

        Raises:
            NotWritable: It could be kept nowhere.
        """
        with self._alone():
            state = self.state()
            held = not state.on and state.held_by == "user"
            if held and all(_says_off(path) for path in self.places.switches):
                return
            try:
                self.write(False, settle=settle)
            except NotWritable:
                if not held:
                    raise

    def settle(self) -> None:
        """Flush both files to disk: a loss of power loses nothing of them then."""
        for path in self.places.switches:
            with contextlib.suppress(OSError):
                files.settle(path)

    def write(self, on: bool, features: dict[str, Feature] | None = None, *, settle: bool = True) -> None:
        """Keep a state in both files.

        Args:
            on: Whether anything may run.
            features: What is said of single features; None keeps what was said.
            settle: Flush them to disk.

        Raises:
            NotWritable: Off could be kept nowhere, or on could not be kept everywhere.
        """
        with self._alone():
            self._replace(on, features, settle)

    def _replace(self, on: bool, features: dict[str, Feature] | None, settle: bool = True) -> None:
        kept = self.state().features if features is None else features
        value = {"format": FORMAT, "switch": "on" if on else "off", "features": kept, "changed": round(time.time(), 3)}
        failures: list[OSError] = []
        self._keep_blocked({name for name, said in kept.items() if said == "blocked"})
        for path in self.places.switches:
            try:
                clear_way(path.parent)
                files.write_json(path, value, settled=settle)
            except OSError as error:
                failures.append(error)
                if on:
                    break  # the other copy goes on holding it off
        self._seen = None
        # On needs both files, since either one can hold it off. Off needs one of them; the other is as it was.
        if len(failures) == 2 or (failures and on):
            where = " and ".join(str(path.parent) for path in self.places.switches)
            raise NotWritable(
                f"The switch's state could not be kept in {where}: {failures[0]}",
                "Make the folders writable and give the command again.",
            )

    def set_feature(self, name: str, value: Feature) -> None:
        """Make one feature available, enabled or blocked.

        Raises:
            UsageError: No feature has this name, or the whole switch is off for a damaged state.
            NotWritable: It could not be kept.
        """
        if name not in FEATURES:
            raise UsageError(f"There is no feature `{name}`.", f"Features: {', '.join(FEATURES)}.")
        with self._alone():
            state = self.state()
            if state.held_by == "damage":
                raise UsageError(f"The switch is off: {state.reason}", "Give `stillroom off` or `stillroom on` first.")
            said = dict(state.features)
            said[name] = value
            # An administrator's "off" may hide the user's own.
            user_off = any(_says_off(path) for path in self.places.switches)
            self.write(not user_off, said)

    @property
    def _blocked_file(self) -> Path:
        return self.places.data / "blocked.json"

    def _keep_blocked(self, names: set[str]) -> None:
        """A third record, of the blocked features alone: read where a copy of the state is damaged."""
        if names != self._recorded():
            with contextlib.suppress(OSError):
                clear_way(self.places.data)
                files.write_json(self._blocked_file, sorted(names))

    def _recorded(self) -> set[str]:
        """The blocked features by the third record; all but the engine where it is damaged too."""
        try:
            data = read_file(self._blocked_file)
            value = [] if data is None else read_strict(data)
            if not isinstance(value, list) or not all(isinstance(name, str) and NAME.fullmatch(name) for name in value):
                raise ValueError("it is not a list of features")
        except Exception:
            return FEATURES.keys() - {"engine"}
        return set(value)

    def _read(self) -> State:
        features: dict[str, Feature] = {}
        changed, held, damage = 0.0, False, ""
        for path in reversed(self.places.switches):
            try:
                found = _parse(path)
            except Exception as error:  # any damage, whatever reading it raises
                damage = damage or f"{path} cannot be read ({_short(error)}), and that means off."
                features |= dict.fromkeys(_salvaged(path), "blocked")
                continue
            if found is not None:
                held = held or found["switch"] == "off"
                newer = found["changed"] >= changed
                for name, value in found["features"].items():
                    # Copies differ only where one could not be written: blocked wins, then the newer one.
                    if features.get(name) != "blocked" and (newer or name not in features or value == "blocked"):
                        features[name] = value
                changed = max(changed, found["changed"])
        if damage:
            # The other copy, the third record and what is legible of the damaged one: none of it is forgotten.
            features |= dict.fromkeys(self._recorded(), "blocked")
        try:
            policy = _parse(self.places.policy)
        except Exception as error:
            reason = f"the administrator's policy {self.places.policy} cannot be read ({_short(error)})."
            return State(False, "administrator", reason, features, changed=changed)
        blocked = frozenset(
            name for name, value in (policy or {"features": {}})["features"].items() if value == "blocked"
        )
        if policy and policy["switch"] == "off":
            return State(False, "administrator", "the administrator's policy says so.", features, blocked, changed)
        if damage:
            return State(False, "damage", damage, features, blocked, changed)
        if held:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(changed))
            return State(False, "user", f"turned off on {when}.", features, blocked, changed)
        return State(True, "nobody", "on.", features, blocked, changed)


LATEST = 253402300799.0
"""The last second of the year 9999."""


def read_file(path: Path) -> bytes | None:
    """A small file's bytes; None where there is none. Nothing that is in its place is waited for.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file, or too long.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        if path.is_symlink():
            raise ValueError("it is a link to nothing") from None
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)  # a folder cannot be opened as a stream, which would close it
        raise ValueError("it is not a file")
    with open(descriptor, "rb") as stream:
        data = stream.read(LONGEST + 1)
    if len(data) > LONGEST:
        raise ValueError("it is too long")
    return data


def clear_way(folder: Path) -> None:
    """Move aside what is where one of our folders has to be: a file, or a link to nothing. Nothing is removed."""
    if folder.is_symlink() and not folder.exists():
        os.rename(folder, folder.with_name(f"{folder.name}.moved-away-{time.time_ns()}"))
    files.make_way(folder, folder=True)


def _salvaged(path: Path) -> set[str]:
    """Features that a damaged copy calls blocked, as far as it is legible."""
    try:
        data = read_file(path) or b""
    except (OSError, ValueError):
        return set()
    return {name.decode() for name in re.findall(rb'"([a-z_]{1,40})"\s*:\s*"blocked', data)} & FEATURES.keys()


def _parse(path: Path) -> dict[str, Any] | None:
    """A state or policy file; None where there is none.

    Raises:
        OSError: It cannot be read.
        ValueError, RecursionError: It is not what this version, or any version, writes.
    """
    data = read_file(path)
    if data is None:
        return None
    # A key that is there twice would leave it to the reader which of both counts.
    value = read_strict(data)
    if not isinstance(value, dict) or value.get("switch") not in ("on", "off"):
        raise ValueError("it is not a switch's state")
    if type(value.get("format")) is not int or value["format"] != FORMAT:
        raise ValueError("it is not of a format that this version knows")
    if unknown := value.keys() - {"format", "switch", "features", "changed"}:
        # A key that was misspelt must not leave what it blocks open.
        raise ValueError(f"it has a key that no version writes: {min(unknown)[:40]!r}")
    features = value.get("features", {})
    if (
        not isinstance(features, dict)
        or len(features) > MOST_FEATURES
        or not all(
            NAME.fullmatch(name) and said in ("available", "enabled", "blocked") for name, said in features.items()
        )
    ):
        raise ValueError("its features are not what a switch writes")
    changed = value.get("changed", 0.0)
    if isinstance(changed, bool) or not isinstance(changed, int | float):
        raise ValueError("it was changed at a time that is no number")
    if not (0 <= changed <= LATEST) or math.isnan(changed):
        raise ValueError("it was changed at a time that cannot be")
    return {"switch": value["switch"], "features": features, "changed": float(changed)}


def _says_off(path: Path) -> bool:
    """Whether a copy is whole and says off."""
    with contextlib.suppress(Exception):
        found = _parse(path)
        return found is not None and found["switch"] == "off"
    return False


def _mark(path: Path) -> tuple[int, ...] | str:
    try:
        found = path.stat()
    except OSError as error:
        return str(error.errno)
    return (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_mode, found.st_uid)


def _short(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
