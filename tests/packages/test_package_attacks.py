"""Every attack is refused, with its own message, and the normal case passes."""

from __future__ import annotations

import pytest

from attacks.run import KINDS, PREFIXES, all_attacks, earlier_name, find, main

ATTACKS = all_attacks()
TABLE = (
    "tampering",
    "rollback",
    "freeze",
    "clock set back",
    "mix-and-match",
    "wiped client state",
    "online key stolen",
    "release key stolen",
    "revoke key stolen",
    "device offline",
    "signatures",
    "an old trusted root",
    "race between check and use",
)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_attack_is_refused(name: str) -> None:
    outcome = ATTACKS[name].run()
    assert outcome.refused, outcome.words


def test_no_attack_is_lost() -> None:
    assert len(ATTACKS) == 361, "say here how many there are, when one was added"
    assert {name.partition("/")[0] for name in ATTACKS} == set(KINDS)


def test_an_attack_is_found_by_every_name_it_has_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({earlier_name(name) for name in ATTACKS}) == len(ATTACKS)
    for name in ATTACKS:
        assert find(name, ATTACKS) == [name]
        assert find(earlier_name(name), ATTACKS) == [name]
    assert find("import_pipe", ATTACKS) == find("pipe", ATTACKS) == ["imports/pipe"]
    assert find("template_import", ATTACKS) == ["templates/import"]
    assert find("race", ATTACKS) == [name for name in ATTACKS if name.startswith("race/")] != []
    assert set(PREFIXES) <= set(KINDS)
    assert main(["symlink_file", "no_such"]) == 2
    assert capsys.readouterr().out == "no such attack: no_such\n"
    assert main(["package/symlink_file"]) == 0
    assert capsys.readouterr().out.endswith("1 attacks refused, 0 succeeded\n")


def test_every_line_of_the_attack_table_is_covered() -> None:
    threats = {attack.threat for attack in ATTACKS.values()}
    assert not set(TABLE) - threats


def test_refusals_tell_attacks_apart() -> None:
    """An attack's own words are specific: no empty pattern would match everything."""
    assert all(len(attack.says) >= 5 for attack in ATTACKS.values())
