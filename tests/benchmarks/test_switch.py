"""What the trials of the switch try, without a server."""

from types import SimpleNamespace
from typing import Any

import pytest

from attacks.switch import _damage
from benchmarks import switch

STATES = list(switch.STATES)


def test_every_damage_is_tried_in_the_first_copy_and_in_both() -> None:
    def tried(count: int, damages: int) -> list[tuple[str, int]]:
        plan = switch.planned(STATES, count, damages)
        return [switch.damage_of(number) for state, number in plan if state == "damaged state"]

    whole = tried(400, 2 * len(_damage.NAMES))
    assert sorted(whole) == sorted((name, copies) for name in _damage.NAMES for copies in (1, 2))
    quick = tried(60, len(_damage.NAMES))
    assert sorted(name for name, _ in quick) == sorted(_damage.NAMES)
    assert {copies for _, copies in quick} == {1, 2}
    assert switch.planned(["idle"], 2, 42) == [("idle", 0), ("idle", 1)]


def test_off_is_given_in_both_ways_in_every_state_and_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: set[tuple[str, int, str]] = set()
    at: tuple[str, int] = ("", 0)

    def told(way: str) -> dict[str, Any]:
        ways.add((at[0], at[1] % 2, way))
        return {}

    server = SimpleNamespace(ask=lambda *_: (200, told("page")))
    trials: Any = SimpleNamespace(
        server=server, switch=None, elsewhere=SimpleNamespace(ask=lambda _: told("elsewhere"))
    )
    monkeypatch.setattr(switch.stopping, "off", lambda _: SimpleNamespace(as_dict=lambda: told("library")))
    for at in switch.planned(STATES, 60, 0):
        switch.Trials.off(trials, *at)
    for state in STATES:
        asked = {way for where, _, way in ways if where == state}
        assert asked >= {"library", "page"}, state
    # Whether the clients of the schemas stay does not say how `off` is given.
    assert {("schema bombs", 0, "library"), ("schema bombs", 0, "page")} <= ways


def test_a_trial_that_failed_has_no_time() -> None:
    nothing = {"stopped": 0, "killed": 0, "bytes": 0, "tokens": 0, "survivors": 0}
    found = [
        {"seconds": 0.03, "lag": 0.0, "wrong": []} | nothing,
        {"seconds": None, "lag": 0.0, "wrong": ["OSError()"]} | nothing,
        {"seconds": 0.05, "lag": 0.2, "wrong": []} | nothing,
    ]
    summary = switch._summary(found)
    assert summary["median_seconds"] == summary["max_seconds"] == 0.03
    assert (summary["trials"], summary["lagged"], summary["failures"]) == (3, 1, 1)
