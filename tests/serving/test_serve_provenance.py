"""Where a model comes from, in words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stillroom.core import files
from stillroom.core.errors import VerificationFailed
from stillroom.serving.models import OpenedModel, open_model
from stillroom.serving.passport import in_words, passport_of_run
from stillroom.serving.pool import Pool, ServedModel


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


def test_a_model_that_cannot_be_checked_again_does_not_run_until_it_can(tmp_path: Path) -> None:
    """A full disk is no way to go on with what was revoked."""
    file = tmp_path / "m.gguf"
    file.write_bytes(b"x")
    late = VerificationFailed("The publisher's metadata has expired.", "Ask the publisher to renew it.")
    troubles: list[Exception | None] = [None, OSError(28, "No space left on device"), None, late, late, None]

    class Opened(OpenedModel):
        def recheck(self) -> None:
            if (trouble := troubles.pop(0)) is not None:
                raise trouble

    model = ServedModel.__new__(ServedModel)
    model.name, model.opened, model.engine, model.refusal = "m", Opened(file, "m", file), None, None
    model._loading = asyncio.Lock()
    checks = Pool([model])

    async def look() -> str:
        checks._checked = -1e9
        await checks.tend()
        return str(model.refusal or "")

    assert asyncio.run(look()) == ""
    assert "No space left" in asyncio.run(look())
    assert asyncio.run(look()) == ""
    assert "has expired" in asyncio.run(look())
    assert "has expired" in asyncio.run(look())
    assert asyncio.run(look()) == "", "a publisher who renews late is believed again"


def test_scores_of_an_earlier_student_are_not_shown_as_those_of_a_new_file(tmp_path: Path) -> None:
    entry = {"type": "F16", "sha256": "a" * 64}
    student = {"parameters": 5, "kl_to_teacher": 0.3, "kl_to_teacher_interval": [0.2, 0.4], "bits_per_byte": 1.0}
    teacher = {"name": "big", "bits_per_byte": 0.9}
    files.write_json(tmp_path / "summary.json", {"teacher": teacher, "student": {**student, "gguf_files": [entry]}})
    run: Any = SimpleNamespace(path=tmp_path, recipe=SimpleNamespace(name="small"))
    passport = passport_of_run(run, entry)
    assert passport["scores"] == {"kl_to_teacher": 0.3, "bits_per_byte": 1.0}
    assert passport["warnings"] == ["No one has signed this run."]
    anew = passport_of_run(run, {**entry, "sha256": "b" * 64})
    assert anew["scores"] == anew["intervals"] == anew["lost"] == {}
    assert "not been evaluated since this file was exported" in anew["warnings"][1]
