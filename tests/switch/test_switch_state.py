"""The switch's state: what is kept, who wins, and what means off."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from attacks.switch._damage import NAMES, put
from stillroom import switch
from stillroom.core import files
from stillroom.core.errors import NotWritable, SwitchedOff, UsageError
from stillroom.serving import purge
from stillroom.switch import FEATURES, Places, Switch, state, stopping


@pytest.fixture
def own(tmp_path: Path) -> Switch:
    return Switch(Places.under(tmp_path))


def test_a_fresh_installation_is_on(own: Switch) -> None:
    own.require_on()
    assert all(own.is_on(name) for name in FEATURES)
    assert own.state().feature("tools") == "available"


def test_off_blocks_all_that_is_and_all_that_will_be(own: Switch) -> None:
    stopping.off(own)
    for name in (*FEATURES, "a feature of next year"):
        assert own.state().feature(name) == "blocked"
        with pytest.raises(SwitchedOff, match="stillroom on"):
            own.require_on(name)
    stopping.on(own)
    own.require_on("a feature of next year")


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_is_asked_for_where_it_is_used(feature: str) -> None:
    package = Path(switch.__file__).parents[1]
    asked = [f'{verb}("{feature}"' for verb in ("require_on", "is_on")] + [f'self.require(request, "{feature}"']
    if feature == "engine":
        asked.append("require_on()")
    sources = [path.read_text() for path in package.rglob("*.py") if path.parent.name != "switch"]
    assert any(each in source for source in sources for each in asked), "what blocks it blocks nothing"


def test_off_survives_another_process_and_a_reinstallation(own: Switch) -> None:
    stopping.off(own)
    assert not Switch(own.places).is_on()


def test_single_features_are_blocked_and_enabled(own: Switch) -> None:
    own.set_feature("tools", "blocked")
    assert own.is_on("api")
    with pytest.raises(SwitchedOff, match="tools"):
        own.require_on("tools")
    stopping.off(own)
    stopping.on(own)
    assert not own.is_on("tools"), "off and on change nothing that was said of single features"
    own.set_feature("tools", "enabled")
    assert own.state().feature("tools") == "enabled"
    own.set_feature("engine", "blocked")
    assert not own.is_on("api"), "without an engine nothing else goes"
    with pytest.raises(UsageError, match="no feature"):
        own.set_feature("teleport", "enabled")


def test_setting_a_feature_while_off_turns_nothing_on(own: Switch) -> None:
    stopping.off(own)
    own.set_feature("tools", "enabled")
    assert not own.is_on("tools")


@settings(max_examples=60)
@given(data=st.binary(max_size=200))
@example(data=b'{"format": 1, "switch": "on"}')
@example(data=b'{"format": 1, "switch": "on", "": ""}')
def test_a_state_that_cannot_be_read_means_off(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    own = Switch(Places.under(tmp_path_factory.mktemp("switch")))
    for path in own.places.switches:
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        if own.is_on():
            # Nothing is taken for a state that does not say so itself; what else it must not say stands below.
            value = json.loads(data)
            assert (value["format"], value["switch"]) == (1, "on")
            assert value.keys() <= {"format", "switch", "features", "changed"}


@pytest.mark.parametrize(
    "value",
    [
        {"format": 1, "switch": "maybe"},
        {"format": 2, "switch": "on"},
        {"format": 1, "switch": "on", "features": {"tools": "perhaps"}},
        {"format": 1, "switch": "on", "features": []},
        {"format": 1, "switch": "on", "": ""},
        [],
    ],
)
def test_a_state_that_says_something_else_means_off(own: Switch, value: Any) -> None:
    files.write_json(own.places.switches[1], value)
    assert not own.is_on()
    assert own.state().held_by == "damage"
    stopping.on(own)
    assert own.is_on(), "the user can set it right"


def test_a_folder_in_place_of_the_state_means_off(own: Switch) -> None:
    own.places.switches[0].mkdir(parents=True)
    assert not own.is_on()


def test_one_of_two_copies_is_enough_for_off(own: Switch) -> None:
    stopping.off(own)
    for lost in own.places.switches:
        kept = lost.read_bytes()
        lost.unlink()
        assert not own.is_on()
        lost.write_bytes(kept)


@pytest.mark.parametrize("ends_at", range(8))
def test_a_power_cut_at_any_write_leaves_on_or_off_and_never_less(
    own: Switch, ends_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk may be the last one."""
    stopping.off(own)
    left = ends_at

    class PowerCut(BaseException):
        pass

    def cutting(call: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise PowerCut
            left -= 1
            return call(*arguments, **options)

        return run

    for name in ("replace", "fsync", "open"):
        monkeypatch.setattr(os, name, cutting(getattr(os, name)))
    try:
        own.write(True)
        written = True
    except PowerCut:
        written = False
    monkeypatch.undo()
    assert Switch(own.places).state().held_by in ("nobody", "user"), "never damaged"
    assert Switch(own.places).is_on() == written or all(
        json.loads(path.read_text())["switch"] == "on" for path in own.places.switches
    )
    # The other way round: whatever was cut off, giving off again is off.
    stopping.off(own)
    assert not Switch(own.places).is_on()


def test_off_in_a_folder_that_cannot_be_written(own: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[Path] = []

    def refuse(path: Path, value: Any, **options: Any) -> None:
        writes.append(path)
        if path.is_relative_to(own.places.config):
            raise PermissionError(13, "Permission denied", str(path))
        original(path, value, **options)

    original = files.write_json
    monkeypatch.setattr(files, "write_json", refuse)
    stopping.off(own)  # the other copy is enough
    assert not own.is_on()
    with pytest.raises(NotWritable):
        stopping.on(own)
    assert not own.is_on()
    stopping.off(own)  # needs no write: it is off already


def test_off_that_cannot_be_kept_at_all_says_so(own: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, value: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "write_json", refuse)
    with pytest.raises(NotWritable, match="0 engines were stopped"):
        stopping.off(own)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_state_without_permission_means_off(own: Switch) -> None:
    stopping.on(own)
    own.places.switches[0].chmod(0)
    assert not own.is_on()


def test_the_administrator_wins_and_is_named(own: Switch) -> None:
    stopping.on(own)
    files.write_json(own.places.policy, {"format": 1, "switch": "off"})
    assert not own.is_on()
    assert stopping.status(own)["held_by"] == "administrator"
    with pytest.raises(SwitchedOff, match="policy"):
        own.require_on()
    with pytest.raises(SwitchedOff, match="stays off"):
        stopping.on(own)
    files.write_json(own.places.policy, {"format": 1, "switch": "on", "features": {"tools": "blocked"}})
    assert own.is_on("api")
    own.set_feature("tools", "enabled")
    assert not own.is_on("tools")
    assert stopping.status(own)["features"]["tools"]["held_by"] == "administrator"
    assert stopping.status(own)["features"]["tools"]["about"] == FEATURES["tools"]
    files.write_json(own.places.policy, {"format": 1, "switch": "on", "features": {"later": "blocked"}})
    assert stopping.status(own)["features"]["later"]["state"] == "blocked"
    own.places.policy.write_text("{")
    assert not own.is_on(), "a policy that cannot be read means off"


def test_a_policy_cannot_take_off_away_from_the_user(own: Switch) -> None:
    files.write_json(own.places.policy, {"format": 1, "switch": "on"})
    stopping.off(own)
    assert not own.is_on()


def test_the_environment_does_not_move_the_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Places.of_user.cache_clear()
    before = Places.of_user()
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    Places.of_user.cache_clear()
    assert Places.of_user() == before


def test_purge_lists_before_and_removes_after(own: Switch, tmp_path: Path) -> None:
    from stillroom.serving.sessions import SessionStore

    store = SessionStore(own.places.data / "sessions", keyring=False)
    store.create("one", "model", "digest")
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"GGUF")
    found = purge.listing(own.places, [weights])
    assert {item.kind for item in found} == {"sessions", "weights"}
    assert all(item.bytes for item in found)
    assert weights.exists()
    stopping.off(own)
    assert len(purge.purge(own.places, found)) == 2
    assert not weights.exists()
    assert not (own.places.data / "sessions").exists()
    assert not own.is_on(), "a purge turns nothing on"
    with pytest.raises(UsageError, match="not a model"):
        (tmp_path / "letters.txt").write_text("dear")
        purge.listing(own.places, [tmp_path / "letters.txt"])


def test_commands_and_library_are_the_same_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillroom.cli.app import app

    places = Places.under(tmp_path)
    monkeypatch.setattr(Places, "of_user", classmethod(lambda cls: places))
    runner = CliRunner()
    shown = runner.invoke(app, ["off"])
    assert shown.exit_code == 0
    assert shown.stdout.startswith("Off. 0 engines stopped")
    assert not switch.is_on()
    status = json.loads(runner.invoke(app, ["status", "--json"]).stdout)
    assert status["switch"] == "off"
    assert status["held_by"] == "user"
    with pytest.raises(SwitchedOff):
        switch.require_on()
    assert runner.invoke(app, ["on"]).stdout == "On.\n"
    switch.require_on()
    assert "tools: blocked" in runner.invoke(app, ["off", "--feature", "tools"]).stdout
    assert not switch.is_on("tools")
    assert stat.S_IMODE(places.engines.parent.stat().st_mode) & 0o077 in (0, 0o055)


@pytest.mark.parametrize("words", [["--purge"], ["--purge", "--yes"], ["--weights", "model.gguf"], ["--json"]])
def test_options_that_off_would_not_heed_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    from stillroom.cli.app import app

    places = Places.under(tmp_path)
    monkeypatch.setattr(Places, "of_user", classmethod(lambda cls: places))
    refused = CliRunner().invoke(app, ["off", "--feature", "tools", *words])
    assert isinstance(refused.exception, UsageError)
    assert all(word in str(refused.exception) for word in words if word.startswith("--"))
    assert switch.is_on("tools")
    assert switch.is_on()


def test_weights_without_purge_are_kept_and_everything_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillroom.cli.app import app

    places = Places.under(tmp_path)
    monkeypatch.setattr(Places, "of_user", classmethod(lambda cls: places))
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"GGUF")
    told = CliRunner().invoke(app, ["off", "--weights", str(weights)])
    assert isinstance(told.exception, UsageError)
    assert "without --purge" in str(told.exception)
    assert weights.exists()
    assert not switch.is_on()


@pytest.mark.parametrize("damage", NAMES)
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_any_damage_means_off_and_loses_no_blocked_feature(own: Switch, damage: str, which: tuple[int, ...]) -> None:
    own.set_feature("api", "blocked")
    own.set_feature("tools", "blocked")
    for number in which:
        put(own.places.switches[number], damage)
    fresh = Switch(own.places)
    assert not fresh.is_on()
    said = stopping.status(fresh)
    assert said["held_by"] == "damage"
    assert str(own.places.switches[0].name) in said["reason"]
    receipt = stopping.off(fresh)
    assert receipt.stopped == []
    assert fresh.state().held_by == "user"
    stopping.on(fresh)
    again = Switch(own.places)
    assert again.is_on()
    assert not again.is_on("api")
    assert not again.is_on("tools")
    assert again.is_on("chat")


@pytest.mark.parametrize("damage", NAMES)
def test_a_damaged_policy_means_off_and_every_command_works(own: Switch, damage: str) -> None:
    own.set_feature("tools", "blocked")
    put(own.places.policy, damage)
    fresh = Switch(own.places)
    assert not fresh.is_on()
    assert stopping.status(fresh)["held_by"] == "administrator"
    stopping.off(fresh)
    with pytest.raises(SwitchedOff, match="stays off"):
        stopping.on(fresh)
    own.places.policy.rename(own.places.policy.with_name("repaired"))
    stopping.on(fresh)
    assert fresh.is_on()
    assert not fresh.is_on("tools")


def test_damage_of_everything_blocks_rather_than_forgets(own: Switch) -> None:
    own.set_feature("api", "blocked")
    for path in (*own.places.switches, own.places.data / "blocked.json"):
        path.write_bytes(b"\0" * 100)
    fresh = Switch(own.places)
    stopping.on(fresh)
    assert fresh.is_on()
    assert not any(fresh.is_on(name) for name in FEATURES if name != "engine")
    for name in FEATURES:
        fresh.set_feature(name, "available")
    assert Switch(own.places).is_on("api")


@pytest.mark.parametrize("record", [b'["\\ud800", "api"]', b'["api", "api\\u0000"]', b'[["api"]]', b'{"api": 1}'])
def test_no_record_of_blocked_features_keeps_off_from_being_kept(own: Switch, record: bytes) -> None:
    own.set_feature("api", "blocked")
    (own.places.data / "blocked.json").write_bytes(record)
    put(own.places.switches[1], "empty")
    stopping.off(Switch(own.places))
    assert Switch(own.places).state().held_by == "user"
    stopping.on(Switch(own.places))
    assert not Switch(own.places).is_on("api")


def test_a_feature_that_is_set_meanwhile_does_not_undo_off(own: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    own.set_feature("tools", "enabled")
    writing, go_on = threading.Event(), threading.Event()
    write = files.write_json
    setter = threading.Thread(target=lambda: Switch(own.places).set_feature("api", "blocked"))

    def slowly(path: Path, value: Any, **options: Any) -> None:
        if threading.current_thread() is setter and path == own.places.switches[0]:
            writing.set()
            go_on.wait(10)
        write(path, value, **options)

    monkeypatch.setattr(files, "write_json", slowly)
    monkeypatch.setattr(state, "LOCK_SECONDS", 10)
    setter.start()
    assert writing.wait(10)
    turning = threading.Thread(target=lambda: stopping.off(Switch(own.places)))
    turning.start()
    time.sleep(0.05)
    go_on.set()
    setter.join()
    turning.join()
    assert not Switch(own.places).state().on
    stopping.on(own)
    assert not own.is_on("api"), "and `off` did not undo what was set"


def test_a_writer_that_came_in_without_the_lock_leaves_it_to_the_others(own: Switch) -> None:
    first, second, left = threading.Event(), threading.Event(), threading.Event()

    def other() -> None:
        first.wait()
        with own._alone():  # waits in vain
            second.set()
            left.wait()

    thread = threading.Thread(target=other)
    thread.start()
    with own._alone():
        first.set()
        second.wait()
    left.set()
    thread.join()
    with own._alone(), open(own.places.state / "switch.lock", "rb") as handle, pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_writer_that_hangs_does_not_hold_off_up(own: Switch) -> None:
    own.write(True)
    with open(own.places.state / "switch.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        stopping.off(own)
        assert not Switch(own.places).is_on()


@pytest.mark.parametrize(
    "damage", ["folder", "full_folder", "pipe", "link_to_itself", "link_to_nothing", "endless_device"]
)
def test_whatever_stands_for_the_writers_lock_holds_nothing_up(own: Switch, damage: str) -> None:
    own.set_feature("api", "blocked")
    put(own.places.state / "switch.lock", damage)
    stopping.off(own)
    assert not Switch(own.places).is_on()
    stopping.on(own)
    assert Switch(own.places).is_on()
    assert not Switch(own.places).is_on("api")


def test_off_is_kept_in_both_copies_though_one_says_it(own: Switch) -> None:
    """An `on` that was cut off between its two files, or still goes on, must find nothing that says on."""
    stopping.off(own)
    value = json.loads(own.places.switches[0].read_text())
    files.write_json(own.places.switches[0], {**value, "switch": "on"})
    stopping.off(own)
    assert json.loads(own.places.switches[0].read_text())["switch"] == "off"


def test_a_feature_set_under_a_policy_leaves_the_users_own_off(own: Switch) -> None:
    stopping.off(own)
    files.write_json(own.places.policy, {"format": 1, "switch": "off"})
    own.set_feature("tools", "blocked")
    own.places.policy.unlink()
    assert not Switch(own.places).state().on


@pytest.mark.parametrize("kind", ["a file", "a link to nothing"])
def test_what_stands_in_the_way_of_a_folder_is_moved_aside(own: Switch, kind: str) -> None:
    for folder in (own.places.config, own.places.state):
        folder.symlink_to("nowhere") if kind == "a link to nothing" else folder.write_text("mine")
    assert (kind == "a link to nothing") or not own.is_on()
    stopping.off(own)
    assert not Switch(own.places).is_on()
    stopping.on(own)
    assert Switch(own.places).is_on()
    assert len(list(own.places.config.parent.glob("config.moved-away*"))) == 1


def test_commands_name_what_runs_elsewhere_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stillroom.cli.app import app

    places = Places.under(tmp_path)
    monkeypatch.setattr(Places, "of_user", classmethod(lambda cls: places))
    places.engines.mkdir(parents=True)
    line = {
        "kind": "engine",
        "pid": 77,
        "started": 5.0,
        "model": "a\nThe switch is on.\x1b[2J",
        "where": "host\x9b b n 1",
    }
    (places.engines / "engine-77-x.json").write_text(json.dumps(line))
    runner = CliRunner()
    for command in (["off"], ["status"]):
        said = runner.invoke(app, command).stdout
        (found,) = [each for each in said.split("\n") if "elsewhere" in each]
        assert "a\\nThe switch is on.\\u001b[2J" in found
        assert "host\\u009b" in found
