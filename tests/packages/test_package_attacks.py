"""Every attack is refused, with its own message, and the normal case passes."""

from __future__ import annotations

import pytest

from attacks.run import all_attacks

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


def test_every_line_of_the_attack_table_is_covered() -> None:
    threats = {attack.threat for attack in ATTACKS.values()}
    assert not set(TABLE) - threats
    assert len(ATTACKS) >= 60


def test_refusals_tell_attacks_apart() -> None:
    """An attack's own words are specific: no empty pattern would match everything."""
    assert all(len(attack.says) >= 5 for attack in ATTACKS.values())
