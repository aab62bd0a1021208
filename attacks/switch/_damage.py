"""Every way to damage a file of the switch that the attacks here try, each in its copies and in the policy."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from stillroom.switch import Places, Switch, stopping

CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "deep_lists": b"[" * 60_000,
    "deep_objects": b'{"a":' * 12_000,
    "day_that_cannot_be": b'{"format": 1, "switch": "on", "features": {}, "changed": 1e300}',
    "off_on_a_day_that_cannot_be": b'{"format": 1, "switch": "off", "features": {}, "changed": 1e300}',
    "400_digits": b'{"format": 1, "switch": "on", "features": {}, "changed": ' + b"9" * 400 + b"}",
    "5000_digits": b'{"format": 1, "switch": "on", "features": {}, "changed": ' + b"9" * 5000 + b"}",
    "infinite": b'{"format": 1, "switch": "on", "features": {}, "changed": Infinity}',
    "not_a_number": b'{"format": 1, "switch": "on", "features": {}, "changed": NaN}',
    "before_1970": b'{"format": 1, "switch": "on", "features": {}, "changed": -1}',
    "switch_in_a_list": b'{"format": 1, "switch": ["on"], "features": {}}',
    "feature_in_a_list": b'{"format": 1, "switch": "on", "features": {"api": ["enabled"]}}',
    "features_a_text": b'{"format": 1, "switch": "on", "features": "none"}',
    "half_a_character": b'{"format": 1, "switch": "on", "features": {"\\ud800": "enabled"}, "changed": 5}',
    "feature_of_no_name": b'{"format": 1, "switch": "on", "features": {"": "enabled", "a\\u0000b": "enabled"}, "changed": 5}',
    "too_many_features": b'{"format": 1, "switch": "on", "features": {'
    + b", ".join(b'"f%d": "enabled"' % number for number in range(900))
    + b'}, "changed": 5}',
    "switch_twice": b'{"format": 1, "switch": "off", "switch": "on", "features": {}, "changed": 5}',
    "feature_twice": b'{"format": 1, "switch": "on", "features": {"api": "blocked", "api": "enabled"}, "changed": 5}',
    "features_twice": b'{"format": 1, "switch": "on", "features": {"api": "blocked"}, "features": {}, "changed": 5}',
    "format_of_truth": b'{"format": true, "switch": "on", "features": {}, "changed": 5}',
    "format_with_a_point": b'{"format": 1.0, "switch": "on", "features": {}, "changed": 5}',
    "day_in_words": b'{"format": 1, "switch": "on", "features": {}, "changed": "today"}',
    "day_of_truth": b'{"format": 1, "switch": "on", "features": {}, "changed": true}',
    "utf_16": '{"format": 1, "switch": "on", "features": {}, "changed": 5}'.encode("utf-16"),
    "utf_32": '{"format": 1, "switch": "on", "features": {}, "changed": 5}'.encode("utf-32"),
    "order_of_bytes": b'\xef\xbb\xbf{"format": 1, "switch": "on", "features": {}, "changed": 5}',
    "two_states": b'{"format": 1, "switch": "on", "features": {}}{"format": 1, "switch": "on", "features": {}}',
    "zero_behind": b'{"format": 1, "switch": "on", "features": {}}\0',
    "key_misspelt": b'{"format": 1, "switch": "on", "feature": {"api": "blocked"}}',
    "later_format": b'{"format": 2, "switch": "on", "features": {}}',
    "not_text": b"\xff\xfe\x00",
    "zeros": b"\0" * 200,
    "cut_off": b'{"format": 1, "switch": "on", "featu',
    "too_long": b'{"format": 1, "switch": "on"}' + b" " * (1 << 17),
}


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _folder(path: Path) -> None:
    path.mkdir()


def _full_folder(path: Path) -> None:
    (path / "below").mkdir(parents=True)
    (path / "below" / "file").write_text("x")


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(1 << 40)


def _socket(path: Path) -> None:
    # The path of a socket is short: it is made by the folder's handle.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


STAND_INS: dict[str, Callable[[Path], None]] = {
    "pipe": _pipe,
    "endless_device": _endless,
    "link_to_itself": _loop,
    "link_to_nothing": _nowhere,
    "folder": _folder,
    "full_folder": _full_folder,
    "sparse_tebibyte": _sparse,
    **({"socket": _socket} if Path("/proc/self/fd").is_dir() else {}),
}
NAMES = (*CONTENTS, *STAND_INS)


def put(path: Path, name: str) -> None:
    """Put a damage in the place of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if name in CONTENTS:
        path.write_bytes(CONTENTS[name])
    else:
        STAND_INS[name](path)


def blocked(folder: Path) -> Switch:
    """A switch that is on, of whose features `api` is blocked."""
    switch = Switch(Places.under(folder))
    switch.set_feature("api", "blocked")
    return switch


def works(folder: Path) -> None:
    """Without a damage the switch is on, and what was not blocked may be used; `off` and `on` change nothing of it."""
    switch = blocked(folder)
    stopping.off(switch)
    stopping.on(switch)
    again = Switch(switch.places)
    again.require_on("chat")
    assert not again.is_on("api")
