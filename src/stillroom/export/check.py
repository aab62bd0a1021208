"""Whether an exported file, run by llama.cpp, says what its PyTorch student says. Knows nothing of how it was written.

Legend: P positions, V ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stillroom.errors import ExportMismatch
from stillroom.progress import Task
from stillroom.serve.engine import Engine, EngineOptions

MOST_LISTED = 4096
"""Ids whose log-probability the runtime lists at a position; the mass of the others is compared as one."""


@dataclass(frozen=True)
class Agreement:
    """How a file compares with its student.

    Attributes:
        kl: Mean KL(PyTorch ‖ file), nats a token.
        largest_kl: The largest at a single position.
        top1: Share of positions with the same most probable token.
        positions: Positions compared.
    """

    kl: float
    largest_kl: float
    top1: float
    positions: int


@torch.inference_mode()
def compare(model: Any, tokenizer: Any, file: Path, sequences: list[list[int]], used: int, task: Task) -> Agreement:
    """Compare a file with its student, position by position, on the same token ids.

    Args:
        model: The PyTorch student, float32.
        tokenizer: Its tokenizer.
        file: The GGUF file.
        sequences: Token ids; every position of each is compared.
        used: Rows of the student's output that are real ids.
        task: Takes progress in positions.
    """
    divergences: list[float] = []
    same = 0
    longest = max(len(ids) for ids in sequences)
    harmless = int(tokenizer("a", add_special_tokens=False)["input_ids"][-1])
    with Engine(file, EngineOptions(context=max(256, longest + 16))) as engine:
        for ids in sequences:
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :, :used].float()
            expected = torch.log_softmax(logits, dim=1)
            for index in range(len(ids)):
                listed = _listed(engine, ids[: index + 1], min(used, MOST_LISTED), harmless)
                divergences.append(_divergence(expected[index], listed))
                same += int(int(expected[index].argmax()) == max(listed, key=lambda key: listed[key]))
                task.advance(1)
    return Agreement(sum(divergences) / len(divergences), max(divergences), same / len(divergences), len(divergences))


def require_agreement(agreement: Agreement, kind: str, limit: float, file: Path) -> None:
    """Refuse a file that is further from its student than the recipe allows.

    Raises:
        ExportMismatch: It is.
    """
    if not agreement.kl <= limit:
        raise ExportMismatch(
            f"{file.name}: the mean KL to the PyTorch student is {agreement.kl:.2e} nats a token over "
            f"{agreement.positions} positions, and {kind} may have {limit:.0e}; top-1 agreement is {agreement.top1:.1%}.",
            f"Choose a finer type, or raise `export.max_kl.{kind}` if that is good enough for you.",
        )


def require_same_tokens(tokenizer: Any, file: Path, texts: list[str]) -> None:
    """Refuse a file whose tokenizer makes other ids of a text.

    Raises:
        ExportMismatch: It does.
    """
    with Engine(file, EngineOptions(context=2048)) as engine:
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = engine.complete({"prompt": text, "max_tokens": 1, "temperature": 0})
            there = int(answer["usage"]["prompt_tokens"])
            begins = int(bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]))
            if there != len(ids) + begins:
                raise ExportMismatch(
                    f"{file.name}: llama.cpp makes {there} tokens of {text[:40]!r}, "
                    f"and the student's tokenizer {len(ids) + begins}.",
                    "This tokenizer cannot be exported faithfully; use the Hugging Face folder.",
                )


def _listed(engine: Engine, prompt: list[int], count: int, said: int) -> dict[int, float]:
    """Log-probabilities of the next token by id, the most probable first."""
    # llama.cpp lists nothing for an end or for half a character, so one token is forced; the list does not depend on it.
    wanted = {"max_tokens": 1, "temperature": 0, "logprobs": count, "n_probs": count, "logit_bias": [[said, 1e6]]}
    answer = engine.complete({"prompt": prompt, "cache_prompt": True, **wanted})
    entries = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {int(entry["id"]): float(entry["logprob"]) for entry in entries}


def _divergence(expected: torch.Tensor, listed: dict[int, float]) -> float:
    """KL(expected ‖ listed) over the listed ids and, as one, all others."""
    ids = torch.tensor([index for index in listed if index < expected.shape[0]])
    theirs = torch.tensor([listed[int(index)] for index in ids], dtype=torch.float64)
    mine = expected[ids].double()
    divergence = float((mine.exp() * (mine - theirs)).sum())
    rest_mine = max(0.0, 1.0 - float(mine.exp().sum()))
    rest_theirs = max(1e-12, 1.0 - float(theirs.exp().sum()))
    if rest_mine > 1e-9 and len(ids) < expected.shape[0]:
        divergence += rest_mine * (math.log(rest_mine) - math.log(rest_theirs))
    return max(0.0, divergence)
