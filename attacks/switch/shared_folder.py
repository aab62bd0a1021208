"""Another user makes the folder of a user without a home first, in a place where everybody may write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attacks.case import Attack
from stillroom.switch.places import own_folder


def _link(path: Path) -> None:
    (path.parent / "theirs").mkdir(mode=0o700)
    path.symlink_to(path.parent / "theirs")


def _with_mode(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        path.chmod(mode)

    return make


def _works(folder: Path) -> None:
    assert own_folder(folder / "mine") == own_folder(folder / "mine")


def _attack(make: Callable[[Path], None]) -> Attack:
    def attack(folder: Path) -> None:
        make(folder / "mine")
        own_folder(folder / "mine")

    return Attack(threat="squatting", says="belongs to somebody else", works=_works, attack=attack)


ATTACKS = {
    "link": _attack(_link),
    "file": _attack(lambda path: path.touch(mode=0o600)),
    "open_to_all": _attack(_with_mode(0o777)),
    "open_to_all_sticky": _attack(_with_mode(0o1777)),
    "open_to_the_group": _attack(_with_mode(0o770)),
    "readable_by_all": _attack(_with_mode(0o755)),
}
