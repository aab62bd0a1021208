"""Where the switch keeps its state.

The folders come from the system's list of users, not from the environment: a variable such as ``HOME`` or
``XDG_CONFIG_HOME`` that moved the state would be a way round the switch for whatever starts a program.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from stillroom.core.errors import EnvironmentProblem


@dataclass(frozen=True)
class Places:
    """The files of one user's switch.

    Attributes:
        config: The user's folder of settings; holds ``switch.json``.
        state: The user's folder of state; holds a second copy and the list of running engines.
        data: The user's folder of data; holds sessions.
        policy: The administrator's file.
    """

    config: Path
    state: Path
    data: Path
    policy: Path

    @property
    def switches(self) -> tuple[Path, Path]:
        """The two copies of the state. Either one that says off is enough."""
        return (self.config / "switch.json", self.state / "switch.json")

    @property
    def engines(self) -> Path:
        """The folder that lists running engines, one file each."""
        return self.state / "engines"

    @classmethod
    def under(cls, folder: Path) -> Places:
        """Everything under one folder: a switch of its own, for tests and measurements."""
        return cls(folder / "config", folder / "state", folder / "data", folder / "policy.json")

    @classmethod
    @functools.cache
    def of_user(cls) -> Places:
        """The folders of the user whose process this is."""
        if sys.platform == "win32":  # pragma: no cover - asks the system, not the environment
            import platformdirs

            config = Path(platformdirs.user_config_dir("stillroom", False, roaming=True))
            data = Path(platformdirs.user_data_dir("stillroom", False))
            policy = Path(platformdirs.site_config_dir("stillroom", False)) / "policy.json"
            return cls(config, data / "state", data / "data", policy)
        home = _home()
        if sys.platform == "darwin":  # pragma: no cover
            folder = home / "Library" / "Application Support" / "stillroom"
            policy = Path("/Library/Application Support/stillroom/policy.json")
            return cls(folder, folder / "state", folder / "data", policy)
        return cls(
            home / ".config" / "stillroom",
            home / ".local" / "state" / "stillroom",
            home / ".local" / "share" / "stillroom",
            Path("/etc/stillroom/policy.json"),
        )


def _home() -> Path:
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        # A container may run under a number that no user has.
        return own_folder(Path(f"/var/tmp/stillroom-{os.getuid()}"))  # noqa: S108 - looked at before it is used


def own_folder(path: Path) -> Path:
    """A folder in a place that everybody may write to: made, or refused unless it is ours alone.

    Raises:
        EnvironmentProblem: It is another user's, a link, or others may write to it or read it.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EnvironmentProblem(
            f"{path} belongs to somebody else, or others may use it. It would hold the switch of user {os.getuid()}, who has "
            "no home, so nothing is run.",
            "Remove it, or run as a user who has a home.",
        )
    return path
