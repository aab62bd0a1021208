"""How answers of our endpoint are compared with others', and what a soak counts, without a model."""

import http.client
import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from benchmarks import serve
from benchmarks.serving import Serving


def events(texts: int, at: float = 0.0) -> list[tuple[float, dict[str, Any]]]:
    """A streamed answer of so many texts, a second apart."""
    said = [(at + number, {"id": "a", "choices": [{"text": "x"}]}) for number in range(texts)]
    return [*said, (at + texts, {"usage": {"completion_tokens": 5, "prompt_tokens": 7}})]


class Fake(Serving):
    """Answers with so many texts, and remembers what it was asked."""

    texts = 3
    asked: list[str]

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
        self.asked.append(body["prompt"])
        yield from events(self.texts, time.perf_counter())


def fake(**attributes: Any) -> Any:
    server = Fake(SimpleNamespace(pid=os.getpid()), 0, SimpleNamespace())  # type: ignore[arg-type]
    server.__dict__ |= {"asked": []} | attributes
    return server


def test_an_answer_without_text_or_of_one_has_no_rate() -> None:
    assert serve.measured(events(3), 0.0)["rate"] == 2.0
    one, none = serve.measured(events(1), 0.0), serve.measured(events(0), 0.0)
    assert (one["rate"], one["first"], none["rate"], none["first"]) == (None, 0.0, None, None)
    assert serve.decoded([one, one]) is None
    assert serve.decoded([one, none]) is None
    assert serve.decoded([serve.measured(events(3), 0.0)] * 2) == 5.0


def test_all_sides_of_a_pair_get_the_same_prompts() -> None:
    ours, bare, peer = fake(), SimpleNamespace(asked=[]), fake(texts=1)
    bare.stream = lambda body: (bare.asked.append(body["prompt"]), events(3, time.perf_counter()))[1]
    figures, details = serve.speed(ours, bare, peer, 1)
    warm = 4
    assert sorted(ours.asked[warm:]) == sorted(bare.asked[warm:]) == sorted(peer.asked[warm:])
    assert len(set(ours.asked)) == len(ours.asked)
    assert figures["decode_over_bare_1"] is not None
    # The peer's answers are of one text: there is nothing to compare.
    assert figures["decode_over_llama_server_1"] is None
    assert (details["pairs"]["decode_over_bare_1"], details["pairs"]["decode_over_llama_server_1"]) == (
        serve.DECODES,
        0,
    )


def test_a_soak_counts_streams_that_are_cut_and_needs_no_minute() -> None:
    def cut(path: str, body: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
        time.sleep(0.05)
        raise http.client.IncompleteRead(b"")
        yield

    figures, details = serve.soak(fake(stream=cut), 0.2)
    assert figures["soak_memory_growth"] is None
    assert figures["soak_lost"] == details["streams"] > 0
    assert figures["soak_duplicated"] == 0
