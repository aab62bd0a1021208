"""The owner's switch: one control that blocks every feature, present and future.

Everything that runs a model, or serves, keeps or fetches something for one, asks first::

    from stillroom.switch import require_on

    require_on("sessions")      # raises SwitchedOff, which says who holds it

``off`` returns only after every running engine of the user has stopped. Imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stillroom.switch.places import Places
from stillroom.switch.state import FEATURES, Feature, State, Switch

if TYPE_CHECKING:
    from stillroom.switch.stopping import Receipt

__all__ = [
    "FEATURES",
    "Places",
    "State",
    "Switch",
    "confinement",
    "is_on",
    "off",
    "on",
    "require_on",
    "set_feature",
    "status",
]


def _user() -> Switch:
    global _switch
    if _switch is None or _switch.places is not Places.of_user():
        _switch = Switch(Places.of_user())
    return _switch


_switch: Switch | None = None


def require_on(feature: str = "engine") -> None:
    """Refuse where a feature is blocked.

    Raises:
        SwitchedOff: Says who holds it and what to do.
    """
    _user().require_on(feature)


def is_on(feature: str = "engine") -> bool:
    """Whether a feature may be used now. Cheap enough for every token."""
    return _user().is_on(feature)


def status() -> dict[str, Any]:
    """What the switch says: on or off, who holds it, every feature, and the engines that run."""
    from stillroom.switch.stopping import status as describe

    return describe(_user())


def confinement() -> dict[str, Any]:
    """What this system lets a model's process be denied: every restriction, and in words what is missing.

    Found by trying it in a child; takes some tenths of a second.
    """
    from stillroom.core.sandbox.confine import missing
    from stillroom.core.sandbox.probe import measures

    found = measures()
    return {"measures": found, "missing": missing(found)}


def off() -> Receipt:
    """Turn everything off; returns when every running engine of the user has stopped.

    Raises:
        NotWritable: The engines have stopped, but the state could not be kept.
        EngineFailed: An engine could not be stopped.
    """
    from stillroom.switch.stopping import off as stop

    return stop(_user())


def on() -> None:
    """Turn it on again; starts nothing.

    Raises:
        SwitchedOff: The administrator's policy holds it.
        NotWritable: It could not be kept.
    """
    from stillroom.switch.stopping import on as allow

    allow(_user())


def set_feature(name: str, value: Feature) -> None:
    """Make one feature available, enabled or blocked."""
    _user().set_feature(name, value)
