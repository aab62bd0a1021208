"""Asking ranks a suspect among controls: strangers are not accused, copies are found, and it stops when it can tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import UsageError
from stillroom.guard.ask import ask_in_batches, decide, greedy, same_start


def crowd(rng: np.random.Generator, models: int, prompts: int) -> np.ndarray:
    """Independent models that differ in how typical they are."""
    typical = np.clip(rng.normal(0.5, 0.06, size=(models, 1)), 0, 1)
    return np.asarray(rng.random((models, prompts)) < typical)


def test_independent_models_are_hardly_ever_accused() -> None:
    rng = np.random.default_rng(0)
    accused = sum(
        decide(models[0], models[1:]).verdict == "more alike than all controls"
        for models in (crowd(rng, 100, 400) for _ in range(1000))
    )
    # At most once in 100 by exchange of models, and half of that by the margin.
    assert accused <= 10


def test_a_copy_is_found_early_and_a_stranger_let_go_early() -> None:
    rng = np.random.default_rng(1)
    controls = crowd(rng, 99, 2000)

    def asker(share: float) -> tuple[list[int], object]:
        asked: list[int] = []

        def ask(prompts: object) -> list[str]:
            count = len(prompts)  # type: ignore[arg-type]
            asked.append(count)
            return ["yes" if rng.random() < share else "no" for _ in range(count)]

        return asked, ask

    prompts, expected = [str(number) for number in range(2000)], ["yes"] * 2000
    for share, verdict in ((0.95, "more alike than all controls"), (0.2, "not more alike")):
        asked, ask = asker(share)
        result = ask_in_batches(ask, prompts, expected, controls, None)  # type: ignore[arg-type]
        assert result.verdict == verdict
        assert result.prompts == sum(asked) < 2000
    assert ask_in_batches(ask, prompts[:100], expected[:100], controls[:, :100], None).controls == 99  # type: ignore[arg-type]


def test_stopping_early_changes_no_verdict() -> None:
    rng = np.random.default_rng(2)
    controls = crowd(rng, 99, 300)
    for share in np.linspace(0.3, 0.9, 40):
        suspect = rng.random(300) < share
        final = decide(suspect, controls).verdict
        for used in range(0, 300, 50):
            early = decide(suspect[:used], controls).verdict
            assert early == "cannot tell" or (early == final) or (early, final) == ("not more alike", "cannot tell")


def test_too_few_controls_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 99"):
        decide(np.zeros(0, bool), np.zeros((98, 10), bool))
    with pytest.raises(UsageError, match="at least 20"):
        decide(np.zeros(0, bool), np.zeros((19, 10), bool), 0.1)
    assert decide(np.ones(10, bool), np.zeros((20, 10), bool), 0.1).verdict == "more alike than all controls"


def test_answers_are_compared_by_their_first_words() -> None:
    assert same_start("the same four words and more", "the  same four words\nbut not")
    assert not same_start("the same", "the other")
    assert not same_start("", "")


def test_the_command_asks_models_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = tiny_model("llama", tmp_path / "owner", layers=1, seed=1)
    for seed in (2, 3):
        tiny_model("llama", tmp_path / "controls" / str(seed), layers=1, seed=seed)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"word {number}\n" for number in range(20)))
    command = ["guard", "ask", str(owner), "--owner", str(owner), "--controls", str(tmp_path / "controls")]
    command += ["--prompts", str(prompts), "--json"]
    shown = CliRunner().invoke(app, command)
    assert isinstance(shown.exception, UsageError)
    monkeypatch.setattr("stillroom.guard.ask.LEAST_CONTROLS_WITH_MARGIN", 2)
    shown = CliRunner().invoke(app, [*command, "--margin", "0.1"])
    assert shown.exit_code == 0, shown.output
    (finding,) = json.loads(shown.stdout)["findings"]
    assert finding["verdict"] == "more alike than all controls"
    assert finding["log10_p"] is None
    assert finding["rank"] == {"rank": 1, "of": 3}


def test_prompts_that_are_read_together_are_answered_as_each_alone(tmp_path: Path) -> None:
    from stillroom.guard.lineage_match import open_model

    ask = greedy(open_model(tiny_model("llama", tmp_path, layers=2)))
    words = ["a", "sorted", "list", "keeps", "the", "order", "of", "its", "values", "and", "a", "set", "does", "not"]
    prompts = [" ".join(words[place % 7 : place % 7 + 3 + place % 2]) for place in range(20)] + [""]
    answers = list(ask(prompts))
    assert answers == [next(iter(ask([prompt]))) for prompt in prompts]
    assert len(set(answers)) > 5
