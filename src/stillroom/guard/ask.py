"""Black box: does a model's output agree with the owner's more than all controls' does? A rank, never a p-value.

A p-value over prompts accuses independent models (in our trials 38 % of them at 0.01 with one control): models differ in how
typical they are, and more prompts only sharpen that. So the suspect is one more model among controls, all of which answer every
prompt of the budget beforehand. The bar is the best control's agreement plus a margin: the gap between the best control and
the second, or one that was fixed on other models. An independent suspect is as likely to be first as any control: with 99
controls, at most once in 100, and the margin makes it rarer.

Asking stops as soon as the count over the whole budget is decided: when the suspect has agreed often enough to be above the
bar whatever follows, or too seldom to reach it. So stopping early changes no result, and no correction for looking is needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stillroom.core.errors import UsageError
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
Agreements = npt.NDArray[np.float64]
Asker = Callable[[Sequence[str]], Sequence[str]]
"""Takes prompts and gives the most probable continuation of each."""


@dataclass(frozen=True)
class Asked:
    """What asking came to.

    Attributes:
        verdict: ``more alike than all controls``, ``not more alike`` or ``cannot tell``.
        prompts: Prompts that were used.
        agreement: The suspect's share of prompts on which it says what the owner's model says.
        best_control: The best control's.
        margin: By how much it had to be better.
        rank: 1 for the most alike.
        controls: How many there are.
    """

    verdict: str
    prompts: int
    agreement: float
    best_control: float
    margin: float
    rank: int
    controls: int


def leave_one_out_margin(shares: Agreements) -> float:
    """The gap by which the best control is above all others: what one independent model has shown."""
    if len(shares) < 2:
        return float("inf")
    ordered = np.sort(shares)
    return float(ordered[-1] - ordered[-2])


def decide(suspect: npt.NDArray[np.bool_], controls: npt.NDArray[np.bool_], margin: float | None = None) -> Asked:
    """The result after the suspect's first answers, if it is certain by then.

    Args:
        suspect: [u], whether the suspect said what the owner's model said, for the first u prompts.
        controls: [m, n], the same of each control, for all n prompts of the budget; u <= n.
        margin: Fixed on other models beforehand; without it, at least 99 controls are needed and the margin is the controls'
            own (:func:`leave_one_out_margin`).

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
    shares = controls.mean(axis=1)
    best = float(shares.max())
    gap = leave_one_out_margin(shares) if margin is None else margin
    used, hits = len(suspect), int(suspect.sum())
    bar = (best + gap) * total
    verdict = "cannot tell"
    if hits > bar:
        verdict = "more alike than all controls"
    elif hits + total - used <= bar:
        # A suspect between the best control and the bar is first, and by too little.
        verdict = "not more alike" if hits + total - used <= best * total or used < total else "cannot tell"
    so_far = controls[:, :used].mean(axis=1) if used else shares
    own = hits / used if used else 0.0
    return Asked(verdict, used, own, best, gap, 1 + int((so_far >= own).sum()), count)


def ask_in_batches(
    asker: Asker, prompts: Sequence[str], expected: Sequence[str], controls: npt.NDArray[np.bool_], margin: float | None
) -> Asked:
    """Ask the suspect batch by batch, until the result is certain.

    Args:
        asker: Asks the suspect.
        prompts: All prompts of the budget.
        expected: What the owner's model said to each.
        controls: [m, n], whether each control said the same.
        margin: See :func:`decide`. Errors as there.
    """
    own = np.zeros(0, bool)
    asked = decide(own, controls, margin)
    for start in range(0, len(prompts), BATCH):
        stop = min(start + BATCH, len(prompts))
        answers = asker(prompts[start:stop])
        same = [same_start(*pair) for pair in zip(answers, expected[start:stop], strict=True)]
        own = np.concatenate([own, np.array(same, bool)])
        asked = decide(own, controls, margin)
        if asked.verdict != "cannot tell":
            break
    return asked


def same_start(one: str, other: str, words: int = 4) -> bool:
    """Whether two answers begin with the same few words: what is compared."""
    first, second = one.split()[:words], other.split()[:words]
    return bool(first) and first == second


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


def over_http(address: str, model: str, key: str | None, tokens: int = 8, timeout: float = 60.0) -> Asker:
    """Asks a server with the OpenAI API, at temperature 0.

    Args:
        address: Such as ``http://127.0.0.1:8080/v1``.
        model: The model's name there.
        key: The API key, if one is needed.
        tokens: Tokens of an answer.
        timeout: Seconds that a request may take.
    """
    import httpx2 as httpx

    def ask(prompts: Sequence[str]) -> list[str]:
        answers = []
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        for prompt in prompts:
            body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
            try:
                response = httpx.post(f"{address.rstrip('/')}/completions", json=body, headers=headers, timeout=timeout)
                answers.append(str(response.raise_for_status().json()["choices"][0]["text"]))
            except (httpx.HTTPError, KeyError, IndexError, TypeError, ValueError) as error:
                raise UsageError(
                    f"{address} does not answer a completion: {type(error).__name__}.",
                    "Check the address (it ends in /v1), the model's name and the key.",
                ) from None
        return answers

    return ask


def ask_finding(asked: Asked, subject: str) -> Finding:
    """The finding of a sequential comparison."""
    return Finding(
        test="ask/agreement",
        grade="B",
        verdict=asked.verdict,
        null=f"{subject} is one more model like the controls, independent of the owner's",
        statistic={
            "prompts": asked.prompts,
            "agreement": round(asked.agreement, 5),
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
