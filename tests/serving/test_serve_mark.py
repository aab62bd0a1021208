"""Marked answers: the key's words are favoured, what would give the mark away is refused, and it is off by default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_support import Running, running

from stillroom.core.marks import MarkKey, is_word, period_now
from stillroom.core.secret import Secret
from stillroom.runtime.facts import vocabulary_pieces
from stillroom.serving.mark import Marking

KEY = MarkKey("test", Secret(bytes(range(32))))


@pytest.fixture(scope="module")
def marked(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose answers carry a strong mark."""
    with running([tiny_gguf], tmp_path_factory.mktemp("marked"), marking=Marking(KEY, 10.0)) as made:
        yield made


def listed_share(server: Running, gguf: Path) -> float:
    """Of the words in answers that begin with a space, the share that the key lists."""
    pieces = {piece.decode() for _, piece in vocabulary_pieces(gguf) if is_word(piece) and piece.startswith(b" ")}
    found: list[str] = []
    # Some answers have hardly a word: a few dozen words say something of a share.
    for seed in range(60):
        asked = server.chat("Tell me", max_tokens=200, temperature=1.0, seed=seed)[1]
        text = str(asked["choices"][0]["message"]["content"])
        found += [f" {word}" for word in text.split() if f" {word}" in pieces]
        if len(found) >= 50:
            break
    assert len(found) >= 20, found
    return sum(KEY.listed(word.encode(), period_now()) for word in found) / len(found)


def test_listed_words_are_favoured(marked: Running, server: Running, tiny_gguf: Path) -> None:
    assert listed_share(marked, tiny_gguf) > 0.9
    assert listed_share(server, tiny_gguf) < 0.8


@pytest.mark.parametrize(
    ("path", "options", "name"),
    [
        ("chat/completions", {"logprobs": True}, "logprobs"),
        ("chat/completions", {"logit_bias": {"5": 1.0}}, "logit_bias"),
        ("completions", {"logprobs": 0}, "logprobs"),
        ("completions", {"logit_bias": {"5": 1.0}}, "logit_bias"),
    ],
)
def test_what_would_give_the_mark_away_is_refused_by_name(
    marked: Running, path: str, options: dict[str, object], name: str
) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}]} if path.startswith("chat") else {"prompt": "a"}
    status, answer, _ = marked.ask("POST", f"/v1/{path}", {**asked, "max_tokens": 2, **options})
    assert status == 400
    assert answer["error"]["message"].startswith(f"{name}: this server does not offer it.")


@pytest.mark.parametrize(
    ("path", "options", "name"),
    [
        ("/v1/responses", {"top_logprobs": 3}, "top_logprobs"),
        ("/v1/responses", {"include": ["message.output_text.logprobs"]}, "logprobs"),
        ("/v1/responses", {"logit_bias": {"5": 1.0}}, "logit_bias"),
        ("/api/chat", {"logprobs": True}, "logprobs"),
        ("/api/chat", {"options": {"logit_bias": {"5": 1.0}}}, "logit_bias"),
        ("/api/generate", {"options": {"n_probs": 5}}, "n_probs"),
        ("/api/generate", {"raw": True, "logit_bias": {"5": 1.0}}, "logit_bias"),
    ],
)
def test_no_other_api_gives_the_mark_away(marked: Running, path: str, options: dict[str, object], name: str) -> None:
    asked: dict[str, object] = {"/v1/responses": {"input": "a"}, "/api/generate": {"prompt": "a"}}.get(
        path, {"messages": [{"role": "user", "content": "a"}]}
    )
    model = marked.ask("GET", "/v1/models")[1]["data"][0]["id"]
    status, answer, _ = marked.ask("POST", path, {"model": model, "stream": False, **asked, **options})
    assert status == 400
    assert name in str(answer["error"])


def test_forms_are_kept_while_marking(marked: Running) -> None:
    form = {
        "type": "json_schema",
        "json_schema": {"schema": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
    status, answer = marked.chat("Hello", response_format=form, max_tokens=30)
    assert status == 200
    assert answer["choices"][0]["message"]["content"].startswith("{")


def test_without_a_key_nothing_is_refused(server: Running) -> None:
    status, answer = server.chat("Hello", logprobs=True, logit_bias={"5": 1.0})
    assert status == 200
    assert answer["choices"][0]["logprobs"]["content"]
