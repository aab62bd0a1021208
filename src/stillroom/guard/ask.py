"""Black box: are a model's answers more like the owner's than all controls' answers are? A rank, never a p-value.

A p-value over prompts accuses independent models (in our trials 38 % of them at 0.01 with one control): models differ in how
typical they are, and more prompts only sharpen that. So the suspect is one more model among controls, all of which answer every
prompt of the budget beforehand.

What is compared is how far an answer goes along with the owner's, and how rare that is: for each prompt, minus the logarithm
of the share of the *other* models that go along at least as far (:func:`rarities`), as a mean over prompts, in nats. What
every model says counts nothing; a beginning that the suspect alone shares with the owner counts most. Suspect and controls are
treated alike, so that an independent suspect is as likely to be first as any control: with 99 controls, at most once in 100.
The bar is the best control plus a margin, which makes it rarer: the gap between the best control and the second, or one that
was fixed on other models.

Asking stops as soon as the result over the whole budget is decided, whatever the missing answers are: bounds hold for all of
them. So stopping early changes no result, and no correction for looking is needed.
"""

from __future__ import annotations

import asyncio
import itertools
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stillroom.core.errors import UsageError
from stillroom.core.strict_json import read_strict
from stillroom.guard.findings import Finding, Rank

if TYPE_CHECKING:
    from stillroom.models.load import LoadedTeacher

LEAST_CONTROLS = 99
LEAST_CONTROLS_WITH_MARGIN = 20
"""Controls that are enough where a margin was fixed on other models."""
BATCH = 100
"""Prompts between two looks."""
TOGETHER = 16
"""Prompts of one length that a model reads at once."""
Scores = npt.NDArray[np.float64]
Lengths = npt.NDArray[np.int64]
"""How many characters an answer has in common with the owner's, from the beginning (:func:`common_start`)."""
Asker = Callable[[Sequence[str]], Sequence[str]]
"""Takes prompts and gives the most probable continuation of each."""


@dataclass(frozen=True)
class Asked:
    """What asking came to.

    Attributes:
        verdict: ``more alike than all controls``, ``not more alike`` or ``cannot tell``.
        prompts: Prompts that were used.
        score: The suspect's mean over these prompts, nats (:func:`rarities`).
        best_control: The best control's.
        margin: By how much it had to be better, nats.
        rank: 1 for the most alike.
        controls: How many there are.
    """

    verdict: str
    prompts: int
    score: float
    best_control: float
    margin: float
    rank: int
    controls: int


def common_start(one: str, other: str) -> int:
    """How many characters two answers have in common from their beginning."""
    for place, (first, second) in enumerate(zip(one, other, strict=False)):
        if first != second:
            return place
    return min(len(one), len(other))


def rarities(lengths: Lengths) -> Scores:
    """How rare it is to go along with the owner as far as each model does.

    Args:
        lengths: [k, n], common characters with the owner's answer, of k models to n prompts.

    Returns:
        [k, n], nats: -log((others that go as far + 1/2) / k), where one goes along at all; else 0.
    """
    count = len(lengths)
    as_far = np.zeros(lengths.shape)
    for length in np.unique(lengths):
        if length > 0:
            as_far = np.where(lengths == length, (lengths >= length).sum(axis=0), as_far)
    return np.where(as_far > 0, -np.log((np.maximum(as_far, 1) - 0.5) / count), 0.0)


def leave_one_out_margin(scores: Scores) -> float:
    """The gap by which the best control is above all others: what one independent model has shown."""
    if len(scores) < 2:
        return float("inf")
    ordered = np.sort(scores)
    return float(ordered[-1] - ordered[-2])


def decide(suspect: Lengths, controls: Lengths, whole: Lengths, margin: float | None = None) -> Asked:
    """The result after the suspect's first answers, if it is certain by then.

    Args:
        suspect: [u], common characters of the suspect's answers to the first u prompts.
        controls: [m, n], the same of each control, for all n prompts of the budget; u <= n.
        whole: [n], characters of the owner's answers: the most that can be in common.
        margin: Nats, fixed on other models beforehand; without it, at least 99 controls are needed and the margin is the
            controls' own (:func:`leave_one_out_margin`).

    Raises:
        UsageError: There are too few controls, or no prompts.
    """
    count, total = controls.shape
    least = LEAST_CONTROLS if margin is None else LEAST_CONTROLS_WITH_MARGIN
    if count < least:
        raise UsageError(
            f"There are {count} controls; at least {least} are needed"
            + ("." if margin is not None else ", or a margin that was fixed on other models."),
            f"Add controls, or give --margin (with at least {LEAST_CONTROLS_WITH_MARGIN} controls).",
        )
    if total == 0:
        raise UsageError("There are no prompts.", "Give a file with one prompt a line.")
    used = len(suspect)
    so_far = rarities(np.vstack([suspect, controls[:, :used]]))
    # The missing answers: none goes along at all, or each does wholly. A control's is rarer where the suspect's goes less far.
    rest = controls[:, used:]
    missed = rarities(np.vstack([np.zeros_like(whole[used:]), rest])).sum(axis=1)
    matched = rarities(np.vstack([whole[used:], rest])).sum(axis=1)
    done = so_far.sum(axis=1)
    own_low, own_high = (done[0] + np.array([missed[0], matched[0]])) / total
    low, high = np.sort((done + matched)[1:]) / total, np.sort((done + missed)[1:]) / total
    if margin is None:
        # Two controls at least: the best and the second.
        bar_low, bar_high = max(low[-1], 2 * low[-1] - high[-2]), 2 * high[-1] - low[-2]
    else:
        bar_low, bar_high = low[-1] + margin, high[-1] + margin
    verdict = "cannot tell"
    if own_low > bar_high:
        verdict = "more alike than all controls"
    elif own_high <= bar_low:
        # A suspect between the best control and the bar is first, and by too little.
        verdict = "not more alike" if own_high <= low[-1] or used < total else "cannot tell"
    means = so_far.mean(axis=1) if used else np.zeros(1 + count)
    gap = leave_one_out_margin(means[1:]) if margin is None else margin
    rank = 1 + int((means[1:] >= means[0]).sum())
    return Asked(verdict, used, float(means[0]), float(means[1:].max()), gap, rank, count)


def ask_in_batches(
    asker: Asker, prompts: Sequence[str], expected: Sequence[str], controls: Lengths, margin: float | None
) -> Asked:
    """Ask the suspect batch by batch, until the result is certain.

    Args:
        asker: Asks the suspect.
        prompts: All prompts of the budget.
        expected: What the owner's model said to each.
        controls: [m, n], common characters of each control's answers with these.
        margin: See :func:`decide`. Errors as there.
    """
    whole = np.array([len(answer) for answer in expected], np.int64)
    own = np.zeros(0, np.int64)
    asked = decide(own, controls, whole, margin)
    for start in range(0, len(prompts), BATCH):
        stop = min(start + BATCH, len(prompts))
        answers = asker(prompts[start:stop])
        own = np.concatenate([own, lengths_of(answers, expected[start:stop])])
        asked = decide(own, controls, whole, margin)
        if asked.verdict != "cannot tell":
            break
    return asked


def lengths_of(answers: Sequence[str], expected: Sequence[str]) -> Lengths:
    """[n], common characters of answers with the owner's."""
    return np.array([common_start(*pair) for pair in zip(answers, expected, strict=True)], np.int64)


def greedy(loaded: LoadedTeacher, tokens: int = 8) -> Asker:
    """Asks a model that is here: the most probable continuation, a few tokens long.

    Prompts of equal length are read together, which needs no padding.
    """
    import torch

    def ask(prompts: Sequence[str]) -> list[str]:
        encoded = [loaded.tokenizer.encode(prompt, add_special_tokens=False) or [0] for prompt in prompts]
        order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
        answers = [""] * len(encoded)
        for _, same in itertools.groupby(order, key=lambda place: len(encoded[place])):
            for places in batched(list(same), TOGETHER):
                inputs = torch.tensor([encoded[place] for place in places])
                read = inputs.shape[1]
                with torch.no_grad():
                    for _ in range(tokens):
                        following = loaded.model(input_ids=inputs, use_cache=False).logits[:, -1].argmax(-1)
                        inputs = torch.cat([inputs, following[:, None]], 1)
                for place, ids in zip(places, inputs[:, read:], strict=True):
                    answers[place] = str(loaded.tokenizer.decode(ids, skip_special_tokens=True))
        return answers

    return ask


def batched(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Parts of at most ``size``."""
    for start in range(0, len(places), size):
        yield places[start : start + size]


TRIES = 8
"""How often a request is made to a server that has no time for it (429, 503)."""
PAUSE_SECONDS, LONGEST_PAUSE = 1.0, 60.0
"""The pause before it is asked again: as long as the server says, or twice as long each time."""
ANSWER_BYTES = 1 << 20
"""Longest answer that is read: the server is a suspect's."""


def require_address(address: str) -> str:
    """An address without a key in it: it is shown, and becomes a part of a finding.

    Raises:
        UsageError: It is none, or holds a name, a key or a query.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        plain = bool(parts.hostname) and (parts.port or 1) > 0 and not (parts.query or parts.fragment)
    except ValueError:
        plain, parts = False, urllib.parse.urlsplit("")
    if not plain or "@" in parts.netloc:
        raise UsageError(
            "The suspect's address is not one of the form http://HOST:PORT/v1, without a name, a key or a query in it.",
            "It is shown and signed: give a key with --api-key-fd.",
        )
    return address.rstrip("/")


def over_http(address: str, model: str, key: str | None, tokens: int = 8, timeout: float = 60.0) -> Asker:
    """Asks a server with the OpenAI API, at temperature 0.

    Args:
        address: Such as ``http://127.0.0.1:8080/v1``.
        model: The model's name there.
        key: The API key, if one is needed.
        tokens: Tokens of an answer.
        timeout: Seconds that a request may take, however slowly its answer comes.

    Raises:
        UsageError: The address has a key in it.
    """
    import httpx2 as httpx

    place = f"{require_address(address)}/completions"

    async def once(client: httpx.AsyncClient, prompt: str) -> tuple[int, httpx.Headers, bytes]:
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        data = b""
        async with asyncio.timeout(timeout), client.stream("POST", place, json=body) as response:
            async for part in response.aiter_bytes():
                data += part
                if len(data) > ANSWER_BYTES:
                    raise ValueError("an answer that has no end")
            return response.status_code, response.headers, data

    async def answer(client: httpx.AsyncClient, prompt: str) -> str:
        for tried in range(1, TRIES + 1):
            status, headers, data = await once(client, prompt)
            if status not in (429, 503) or tried == TRIES:
                break
            await asyncio.sleep(_pause(headers.get("retry-after", ""), tried))
        if status != 200:
            raise ValueError(f"status {status}" + (f" after {TRIES} tries" if status in (429, 503) else ""))
        text = read_strict(data, key_twice=True)["choices"][0]["text"]
        if not isinstance(text, str):
            raise TypeError("no text in the answer")
        return text

    async def ask_all(prompts: Sequence[str]) -> list[str]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(headers=headers, timeout=timeout) as client:
            return [await answer(client, prompt) for prompt in prompts]

    def ask(prompts: Sequence[str]) -> list[str]:
        try:
            return asyncio.run(ask_all(prompts))
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, KeyError, IndexError, TypeError, ValueError) as error:
            said = str(error) if str(error).startswith("status ") else type(error).__name__
            raise UsageError(
                f"{address} does not answer a completion: {said}.",
                "Check the address (it ends in /v1), the model's name and the key; where it is busy, ask later.",
            ) from None

    return ask


def _pause(said: str, tried: int) -> float:
    """Seconds until a busy server is asked again."""
    try:
        seconds = float(said)
    except ValueError:
        seconds = PAUSE_SECONDS * 2 ** (tried - 1)
    return min(LONGEST_PAUSE, max(0.0, seconds)) if seconds == seconds else LONGEST_PAUSE


def ask_finding(asked: Asked, subject: str) -> Finding:
    """The finding of a sequential comparison."""
    return Finding(
        test="ask/common-start",
        grade="B",
        verdict=asked.verdict,
        null=f"{subject} is one more model like the controls, independent of the owner's",
        statistic={
            "prompts": asked.prompts,
            "score": round(asked.score, 5),
            "best_control": round(asked.best_control, 5),
            "margin": round(asked.margin, 5),
            "controls": asked.controls,
        },
        rank=Rank(rank=min(asked.rank, asked.controls + 1), of=asked.controls + 1),
        correction="none: the result is that of the whole budget, and asking stops only when it is decided",
        cannot_conclude=(
            "derivation: the same data, size or teacher make models alike too",
            "a p-value: prompts are many and models are few",
            "that nothing was copied, where it says `cannot tell` or `not more alike`",
        ),
        parameters={"batch": BATCH},
    )
