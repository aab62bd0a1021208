"""Twin answers: of two equally good answers to a prompt, a secret coin says which one is served, always the same.

A model that was trained on served answers prefers them to their twins. Given the two answers, the coin is fair and
independent of any model that did not see what it decided, so that signs are exact evidence. The suspect's preference minus a
reference model's is taken first and without the key; it needs about twenty times fewer prompts than without a reference.
Nothing about the answers is changed, and nothing shows in word frequencies.

Rows of the file are JSON objects with ``prompt`` and ``answers`` (two different texts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillroom.core import files
from stillroom.core.errors import UsageError
from stillroom.core.marks import MarkKey, read_key
from stillroom.core.strict_json import NotStrict, read_strict
from stillroom.guard.findings import Finding
from stillroom.guard.intake_text import printable
from stillroom.guard.marks import LEVEL
from stillroom.guard.marks_bounds import Doubles, binomial_tail, sign_flip_bound, signed_ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stillroom.models.load import LoadedTeacher

LONGEST = 1 << 20
"""Bytes of a row."""


@dataclass(frozen=True)
class Twin:
    """A prompt and its two answers, in the order of the file."""

    prompt: str
    answers: tuple[str, str]

    @property
    def label(self) -> str:
        """SHA-256 of the prompt: what the coin is keyed by, so that one prompt has one coin."""
        return files.digest_bytes(self.prompt.encode())


def read_twins(path: Path) -> list[Twin]:
    """Read twins.

    Raises:
        UsageError: The file cannot be read, a row is not one, or a prompt occurs twice; names the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None
    found: dict[str, Twin] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        twin = _twin(line, f"{path}, line {number}")
        if twin.prompt in found:
            raise UsageError(
                f"{path}, line {number}: the prompt occurs before.", "Each prompt has one coin: keep one row."
            )
        found[twin.prompt] = twin
    if not found:
        raise UsageError(f"{path} has no rows.", "Write one JSON object a line: prompt, and two answers.")
    return list(found.values())


def _twin(line: bytes, place: str) -> Twin:
    try:
        row: Any = read_strict(line, limit=LONGEST)
    except NotStrict as error:
        raise UsageError(f"{place}: not JSON ({error}).", "Write one JSON object a line.") from None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    answers = row.get("answers") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not isinstance(answers, list) or len(answers) != 2:
        raise UsageError(f"{place}: no twin.", 'Write {"prompt": "…", "answers": ["…", "…"]}.')
    one, other = answers
    if not (isinstance(one, str) and isinstance(other, str) and one.strip() and other.strip()) or one == other:
        raise UsageError(f"{place}: the answers are not two different texts.", "Give two answers that differ.")
    return Twin(prompt, (one, other))


def served(twin: Twin, key: MarkKey) -> str:
    """The answer that the key's coin serves."""
    return twin.answers[key.coin(twin.label)]


def preferences(loaded: LoadedTeacher, twins: Sequence[Twin]) -> Doubles:
    """By twin: log-probability per byte of the second answer minus that of the first, given the prompt, in nats."""
    found = np.zeros(len(twins))
    for row, twin in enumerate(twins):
        first, second = (_log_probability(loaded, twin.prompt, answer) for answer in twin.answers)
        found[row] = second - first
    if not np.isfinite(found).all():
        raise UsageError("A model's log-probabilities are not finite: it is damaged.", "Get the model again.")
    return found


def _log_probability(loaded: LoadedTeacher, prompt: str, answer: str) -> float:
    tokenizer = loaded.tokenizer
    if tokenizer.chat_template:
        asked = str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
        )
    else:
        asked = f"{prompt}\n\n"
    # Encoded apart, so that both answers follow the same tokens; the first token needs something before it.
    before = tokenizer.encode(asked, add_special_tokens=False) or [tokenizer.eos_token_id or 0]
    after = tokenizer.encode(answer, add_special_tokens=False)
    if not after:
        return 0.0
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([before + after]), use_cache=False).logits[0].float()
    said = torch.log_softmax(logits[len(before) - 1 : -1], -1).gather(1, torch.tensor(after)[:, None])
    return float(said.sum()) / max(1, len(answer.encode()))


def coins_test(differences: Doubles, coins: np.ndarray) -> tuple[float, int, int]:
    """log10 p after Bonferroni over two statistics; twins of which the served one is preferred; twins that say anything.

    Args:
        differences: The suspect's preference for the second answer minus the reference's.
        coins: 1 where the second answer is served, 0 where the first.
    """
    signed = np.where(coins == 1, differences, -differences)
    signed = signed[signed != 0]
    hits = int((signed > 0).sum())
    both = (binomial_tail(hits, len(signed)), sign_flip_bound(signed_ranks(signed)) if len(signed) else 0.0)
    return min(0.0, min(both) + math.log10(2)), hits, len(signed)


def coins_finding(differences: Doubles, twins: Sequence[Twin], path: Path, reference: str) -> Finding:
    """Open a key and test differences that were made without it.

    Args:
        differences: See :func:`coins_test`.
        twins: The twins, in the same order.
        path: The key's file.
        reference: What was subtracted, in words.
    """
    digest = files.digest_json([float(value) for value in differences])
    key = read_key(path)
    coins = np.array([key.coin(twin.label) for twin in twins])
    log10_p, hits, count = coins_test(differences, coins)
    told = log10_p <= LEVEL
    return Finding(
        test="coins/twins",
        grade="A",
        verdict="learnt from served answers" if told else "cannot tell",
        null=f"the suspect and the reference were made independently of the secret coins of the key {key.name}",
        statistic={
            "key": key.name,
            "served_preferred": hits,
            "twins": count,
            "mean_difference_nats_per_byte": float(np.where(coins == 1, differences, -differences).mean()),
            "reference": reference,
            "differences_sha256": digest,
        },
        log10_p=round(log10_p, 3),
        correction="Bonferroni over two statistics (exact binomial; signed ranks with Chernoff's bound)",
        cannot_conclude=(
            "through whose hands the answers came",
            "that served answers were not learnt from, where it says `cannot tell`: few of these prompts may have been used",
        ),
        parameters={"level_log10": LEVEL},
        commitment=key.secret.commitment,
    )


def honeypot_rows(key: MarkKey, accounts: Sequence[str]) -> list[dict[str, str]]:
    """For each account a fact of 64 random bits, to be put where only a crawler asks. Harmless facts only."""
    return [{"account": account, "fact": key.fact(account)} for account in accounts]


def honeypot_findings(text: str, key: MarkKey, accounts: Sequence[str]) -> list[Finding]:
    """Look for accounts' facts in a suspect's text: one finding for each account whose fact is there.

    Under the null hypothesis a given place of the text holds a given fact with probability 2^-64; Bonferroni over places and
    accounts.
    """
    lower = text.lower()
    places = max(1, len(lower) - 15)
    log10_p = min(0.0, -64 * math.log10(2) + math.log10(places) + math.log10(max(1, len(accounts))))
    found = []
    for account in accounts:
        if key.fact(account) in lower:
            # An account may have been named by whom it is about: as it may be shown.
            shown = printable(account, 500)
            found.append(
                Finding(
                    test="coins/honeypot",
                    grade="A",
                    verdict=f"says the fact that was served to {shown} alone",
                    null=f"the text was made independently of the secret facts of the key {key.name}",
                    statistic={"account": shown, "places": places, "accounts": len(accounts)},
                    log10_p=round(log10_p, 3),
                    correction=f"Bonferroni over {places} places of the text and {len(accounts)} accounts",
                    cannot_conclude=(
                        "that the account's holder trained the model: answers may have been passed on or stolen",
                    ),
                    commitment=key.secret.commitment,
                )
            )
    return found
