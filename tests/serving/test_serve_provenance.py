"""Where a model comes from, in words."""

from __future__ import annotations

from pathlib import Path

from stillroom.serving.models import open_model
from stillroom.serving.passport import in_words


def test_a_bare_file_says_that_nothing_is_recorded(tiny_gguf: Path) -> None:
    with open_model(tiny_gguf) as opened:
        first, second, third = in_words(opened.passport())
    assert "no one has signed" in first
    assert "says of itself" in second
    assert "not recorded" in third


def test_a_run_names_its_teacher_and_that_nobody_signed_it(tiny_run: Path) -> None:
    with open_model(tiny_run) as opened:
        passport = opened.passport()
    words = in_words(passport)
    assert passport["teachers"][0]["name"] in words[0]
    assert passport["terms"]["verdict"]
    assert "No one has signed" in words[1]
    assert len(words) > 2


def test_obligations_are_said_each_in_a_sentence() -> None:
    terms = {
        "verdict": "allowed_with_conditions", "name_prefix": "Llama", "notices": ["Built with Llama"], "conditions": ["Ask."],
        "licences": ["llama-3.1"], "use_policies": ["llama-3.1"], "non_commercial": True,
    }  # fmt: skip
    teachers = [{"name": "big", "role": "teacher", "licence": "llama3.1"}, {"name": "own", "role": "student"}]
    signature = {"state": "verified", "signers": ["a", "b"]}
    passport = {"kind": "package", "name": "small", "teachers": teachers, "terms": terms, "signature": signature}
    words = in_words({**passport, "publisher": "acme", "released": "2026-11-01T00:00:00Z"})
    text = " ".join(words)
    for part in (
        "distilled from big (licence: llama3.1)",
        "acme",
        "2 keys",
        "begins with Llama",
        "“Built with Llama”",
        "commercially",
    ):
        assert part in text
    assert "own" not in words[0]
    assert any("licence llama-3.1" in each for each in words)
    assert any("use policy llama-3.1" in each for each in words)
    assert "have not been evaluated" in " ".join(
        in_words({"kind": "run", "name": "x", "terms": {"teacher_licence": None}})
    )
