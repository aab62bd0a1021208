"""Asking ranks a suspect among controls: strangers are not accused, copies are found, and it stops when it can tell."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny_model
from typer.testing import CliRunner

from stillroom.cli.app import app
from stillroom.core.errors import UsageError
from stillroom.guard.ask import TRIES, ask_in_batches, common_start, decide, greedy, over_http, rarities


def crowd(rng: np.random.Generator, models: int, prompts: int) -> np.ndarray:
    """Lengths of independent models that differ in how typical they are."""
    typical = np.clip(rng.normal(0.5, 0.06, size=(models, 1)), 0, 1)
    return np.asarray(rng.binomial(WHOLE, typical, size=(models, prompts)))


WHOLE = 4
"""Characters of the owner's answers in these trials."""


def whole(prompts: int) -> np.ndarray:
    return np.full(prompts, WHOLE)


def test_independent_models_are_hardly_ever_accused() -> None:
    rng = np.random.default_rng(0)
    accused = sum(
        decide(models[0], models[1:], whole(100)).verdict == "more alike than all controls"
        for models in (crowd(rng, 100, 100) for _ in range(1000))
    )
    # At most once in 100 by exchange of models, and fewer by the margin.
    assert accused <= 10


def test_what_is_rare_counts_and_what_all_say_counts_nothing() -> None:
    lengths = np.array([[4, 4, 0], [4, 0, 0], [4, 0, 0], [4, 2, 0]])
    rare = rarities(lengths)
    assert rare[:, 2].tolist() == [0, 0, 0, 0]
    assert rare[:, 0] == pytest.approx(-np.log(3.5 / 4))
    assert rare[:, 1] == pytest.approx([-np.log(0.5 / 4), 0, 0, -np.log(1.5 / 4)])
    # A model's place among them is no reason: they are treated alike.
    order = np.array([2, 0, 3, 1])
    assert np.array_equal(rarities(lengths[order]), rare[order])


def test_a_copy_is_found_early_and_a_stranger_let_go_early() -> None:
    rng = np.random.default_rng(1)
    controls = crowd(rng, 99, 1000)
    prompts, expected = [str(number) for number in range(1000)], ["same"] * 1000
    for share, verdict in ((0.95, "more alike than all controls"), (0.1, "not more alike")):
        asked: list[int] = []

        def ask(prompts: object, share: float = share, asked: list[int] = asked) -> list[str]:
            asked.append(len(prompts))  # type: ignore[arg-type]
            return ["same"[: rng.binomial(WHOLE, share)] for _ in range(asked[-1])]

        result = ask_in_batches(ask, prompts, expected, controls, None)
        assert result.verdict == verdict
        assert result.prompts == sum(asked) < 1000
        assert (result.rank == 1) == (share > 0.5)


@pytest.mark.parametrize("margin", [None, 0.05])
def test_stopping_early_changes_no_verdict(margin: float | None) -> None:
    rng = np.random.default_rng(2)
    controls = crowd(rng, 99, 120)
    told = set()
    for share in np.linspace(0.2, 0.9, 30):
        suspect = rng.binomial(WHOLE, share, 120)
        final = decide(suspect, controls, whole(120), margin).verdict
        told.add(final)
        for used in range(0, 120, 20):
            early = decide(suspect[:used], controls, whole(120), margin).verdict
            assert early in ("cannot tell", final) or (early, final) == ("not more alike", "cannot tell")
    assert {"more alike than all controls", "not more alike"} <= told


def test_too_few_controls_are_refused() -> None:
    none = np.zeros(0, int)
    with pytest.raises(UsageError, match="at least 99"):
        decide(none, np.zeros((98, 10), int), whole(10))
    with pytest.raises(UsageError, match="at least 20"):
        decide(none, np.zeros((19, 10), int), whole(10), 0.1)
    assert decide(whole(10), np.zeros((20, 10), int), whole(10), 0.1).verdict == "more alike than all controls"


def test_answers_are_compared_from_their_beginning() -> None:
    assert common_start("the same and more", "the same but not") == len("the same ")
    assert common_start("the", "the other") == common_start("the other", "the") == 3
    assert common_start("", "") == common_start("a", "b") == 0


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
    told = json.loads(shown.stdout)
    (finding,) = told["findings"]
    assert told["subjects"]["prompts prompts.txt"] == hashlib.sha256(prompts.read_bytes()).hexdigest()
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


class Suspect(BaseHTTPRequestHandler):
    """A server that does what its paths say."""

    waits = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Suspect.waits += 1
        if self.path.startswith("/busy") or (self.path.startswith("/once") and Suspect.waits < 3):
            self.send_response(429)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        said = {"/none": b'{"choices": [{"text": null}]}', "/once": b'{"choices": [{"text": "yes"}]}'}
        with contextlib.suppress(OSError):
            self.wfile.write(said.get(self.path.removesuffix("/completions"), b" "))
            while self.path.startswith(("/slow", "/endless")):
                self.wfile.write(b" " if self.path.startswith("/slow") else b" " * (1 << 16))
                time.sleep(0.02 if self.path.startswith("/slow") else 0)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_suspect_that_is_busy_is_asked_again_and_one_that_is_hostile_is_not_waited_for() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Suspect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}"
        assert list(over_http(f"{place}/once", "m", None)(["a", "b"])) == ["yes", "yes"]
        Suspect.waits = 0
        with pytest.raises(UsageError, match=f"429 after {TRIES} tries"):
            over_http(f"{place}/busy", "m", "a key")(["a"])
        assert Suspect.waits == TRIES
        for path in ("none", "slow", "endless"):
            with pytest.raises(UsageError, match="does not answer a completion"):
                over_http(f"{place}/{path}", "m", None, timeout=0.3)(["a"])
        server.shutdown()


@pytest.mark.parametrize(
    "address",
    ["http://me:secret@host/v1", "https://host/v1?key=secret", "http://[::1/v1", "http:///v1", "http://host:x/v1"],
)
def test_an_address_with_a_key_in_it_is_refused_and_not_repeated(address: str, tmp_path: Path) -> None:
    """It would be signed into the finding."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n")
    owner = tiny_model("llama", tmp_path / "owner", layers=1)
    command = ["guard", "ask", address, "--owner", str(owner), "--controls", str(tmp_path), "--prompts", str(prompts)]
    found = CliRunner().invoke(app, command).exception
    assert isinstance(found, UsageError)
    assert "--api-key-fd" in str(found)
    assert "secret" not in str(found)
