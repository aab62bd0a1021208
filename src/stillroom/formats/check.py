"""Whether an exported file, run by llama.cpp, predicts what its PyTorch student does.

Legend: P positions, V ids, K listed ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from stillroom.core.errors import ExportMismatch
from stillroom.core.progress import Task
from stillroom.corpus.sequences import Sequences
from stillroom.runtime.engine import Engine, EngineOptions
from stillroom.signals.vocabulary_map import VocabularyMap

if TYPE_CHECKING:
    from stillroom.models.types import CausalModel, ModelConfig, Tokenizer

MOST_LISTED = 4096
"""Ids whose log-probability the runtime lists at a position; the mass of the others is compared as one."""
CHECK_LENGTH = 128
"""Longest sequence of the check, in the teacher's tokens."""
BEYOND_POSITIONS = 24
"""Positions behind the attention window that are compared where a model has one."""
LONGEST_WINDOW = 4096
"""Longest attention window that a prompt of the check goes beyond: its cost grows with it."""
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
"""Keys of configs that say how many tokens a layer with a window (or a chunk) attends to."""


@dataclass(frozen=True)
class Passage:
    """A text to compare on.

    Attributes:
        teacher_ids: In the teacher's ids.
        ids: In the student's, [P]; every position is compared, or the last ones.
        source: The teacher's token that each of the student's is a sub-token of, [P].
        last: How many positions are compared; None for all.
    """

    teacher_ids: list[int]
    ids: list[int]
    source: list[int]
    last: int | None = None

    @property
    def compared(self) -> range:
        """The positions that are compared."""
        return range(0 if self.last is None else max(0, len(self.ids) - self.last), len(self.ids))


@dataclass(frozen=True)
class Listed:
    """What a file says at one position: the most probable ids and their log-probabilities, both [K]."""

    ids: torch.Tensor
    logprobs: torch.Tensor


@dataclass(frozen=True)
class Agreement:
    """How what a file says compares with a reference.

    Attributes:
        kl: Mean KL(reference ‖ file), nats per token.
        largest_kl: The largest at a single position.
        top1: Share of positions with the same most probable token.
        positions: Positions compared.
    """

    kl: float
    largest_kl: float
    top1: float
    positions: int


def passages(heldout: Sequences, vocabulary: VocabularyMap, tokens: int, longest: int) -> list[Passage]:
    """Held-out beginnings, each of one document and at most ``longest`` of the student's tokens, ``tokens`` in all."""
    found: list[Passage] = []
    for index in range(len(heldout)):
        room = tokens - sum(len(passage.ids) for passage in found)
        if room <= 0:
            break
        chosen = heldout.segments[index] == heldout.segments[index][0]
        own = heldout.ids[index][chosen][:CHECK_LENGTH]
        ids, source = vocabulary.expand(own)
        room = min(room, longest)
        found.append(Passage(own.tolist(), ids[:room].tolist(), source[:room].tolist()))
    return found


def window_of(config: ModelConfig) -> int | None:
    """Tokens that a model's windowed layers attend to; None where it has no window, or none shorter than its context."""
    types = getattr(config, "layer_types", None)
    windowed = not isinstance(types, list) or any("sliding" in kind or "chunk" in kind for kind in map(str, types))
    found = next((value for key in WINDOWS if isinstance(value := getattr(config, key, None), int)), None)
    if found is None or found < 1 or not windowed or getattr(config, "use_sliding_window", True) is False:
        return None
    longest = getattr(config, "max_position_embeddings", None)
    return found if not isinstance(longest, int) or found + BEYOND_POSITIONS <= longest else None


def beyond_window(heldout: Sequences, vocabulary: VocabularyMap, window: int) -> Passage:
    """A prompt longer than a window, of which the positions behind the window are compared.

    It is made of held-out documents one after the other, from the start again where they are too few: what a file and its
    student predict is compared on the same ids, whatever they are.

    Args:
        heldout: The held-out text.
        vocabulary: From the teacher's ids to the student's.
        window: In the student's tokens.
    """
    teacher_ids = heldout.ids[heldout.segments >= 0]
    ids, source = vocabulary.expand(teacher_ids)
    length = window + BEYOND_POSITIONS
    again = -(-length // max(1, len(ids)))
    return Passage(
        teacher_ids.tolist(),
        ids.repeat(again)[:length].tolist(),
        source.repeat(again)[:length].tolist(),
        BEYOND_POSITIONS,
    )


@torch.inference_mode()
def student_says(model: CausalModel, texts: Iterable[Passage], used: int) -> list[torch.Tensor]:
    """Log-probabilities of the PyTorch student at the compared positions, [P, V] a passage; ``used`` rows are real ids."""
    import inspect

    # Only the asked-for rows of a long prompt's logits are made, where the model can.
    can_leave_out = "logits_to_keep" in inspect.signature(model.forward).parameters
    found = []
    for text in texts:
        options = {"logits_to_keep": len(text.compared)} if text.last is not None and can_leave_out else {}
        logits = model(input_ids=torch.tensor([text.ids]), use_cache=False, **options).logits[0, -len(text.compared) :]
        found.append(torch.log_softmax(logits[:, :used].float(), dim=1))
    return found


def file_says(file: Path, tokenizer: Tokenizer, texts: list[Passage], used: int, task: Task) -> list[list[Listed]]:
    """What a GGUF file says at the compared positions, by llama.cpp. ``task`` takes progress in positions.

    Raises:
        ExportMismatch: Its log-probabilities are no numbers.
    """
    longest = max(len(text.ids) for text in texts)
    harmless = int(tokenizer("a", add_special_tokens=False)["input_ids"][-1])
    said: list[list[Listed]] = []
    with Engine(file, EngineOptions(context=max(256, longest + 16), exact=True)) as engine:
        for text in texts:
            said.append([])
            for index in text.compared:
                said[-1].append(_listed(engine, text.ids[: index + 1], used, harmless))
                task.advance(1)
    return said


def agreement(expected: list[torch.Tensor], said: list[list[Listed]]) -> Agreement:
    """Compare what a reference says with what a file says, position by position."""
    divergences: list[float] = []
    same = 0
    for logprobs, listed in zip(expected, said, strict=True):
        for row, entry in zip(logprobs, listed, strict=True):
            divergences.append(_divergence(row, entry))
            same += int(int(row.argmax()) == int(entry.ids[0]))
    return Agreement(sum(divergences) / len(divergences), max(divergences), same / len(divergences), len(divergences))


def require_agreement(agreement: Agreement, kind: str, limit: float, file: Path, where: str = "") -> None:
    """Refuse a file that is further from its student than the recipe allows; ``where`` is said before the figure.

    Raises:
        ExportMismatch: It is.
    """
    if not agreement.kl <= limit:
        raise ExportMismatch(
            f"{file.name}: {where}the mean KL to the PyTorch student is {agreement.kl:.2e} nats per token over "
            f"{agreement.positions} positions, and {kind} may have {limit:.0e}; top-1 agreement is {agreement.top1:.1%}.",
            f"Choose a finer type, or raise `export.max_kl.{kind}` if that is good enough for you.",
        )


def require_same_tokens(tokenizer: Tokenizer, file: Path, texts: list[str]) -> None:
    """Refuse a file whose tokenizer makes other ids of a text.

    Raises:
        ExportMismatch: It does.
    """
    with Engine(file, EngineOptions(context=256)) as engine:
        for text in texts:
            for special in (False, True):
                here = tokenizer(text, add_special_tokens=special)["input_ids"]
                there = engine.call("POST", "/tokenize", {"content": text, "add_special": special})["tokens"]
                if special and here[-1:] == [tokenizer.eos_token_id] != there[-1:]:
                    # An end after every text is for training; a prompt goes on.
                    here = here[:-1]
                if there != here:
                    raise ExportMismatch(
                        f"{file.name}: of {text[:40]!r} llama.cpp makes the ids {there[:12]}, and the student's "
                        f"tokenizer {here[:12]}.",
                        "This tokenizer cannot be exported faithfully; use the Hugging Face folder.",
                    )


def _listed(engine: Engine, prompt: list[int], used: int, said: int) -> Listed:
    """The next token's log-probabilities, the most probable first.

    Raises:
        ExportMismatch: They are no numbers.
    """
    # llama.cpp lists nothing for an end or for half a character, so one token is forced; the list does not depend on it.
    count = min(used, MOST_LISTED)
    wanted = {"max_tokens": 1, "temperature": 0, "logprobs": count, "n_probs": count, "logit_bias": [[said, 1e6]]}
    answer = engine.complete({"prompt": prompt, "cache_prompt": True, **wanted})
    content = (answer["choices"][0].get("logprobs") or {}).get("content") or [{}]
    entries = content[0].get("top_logprobs") or []
    if not entries or any(entry["logprob"] is None or not math.isfinite(entry["logprob"]) for entry in entries):
        raise ExportMismatch(
            f"{engine.path.name}: llama.cpp computes no probabilities behind {len(prompt)} tokens: its logits are not "
            "finite.",
            "The student's numbers are too large for this type, or its training diverged: choose another type, or train with a "
            "smaller learning rate.",
        )
    ids = torch.tensor([int(entry["id"]) for entry in entries])
    logprobs = torch.tensor([float(entry["logprob"]) for entry in entries], dtype=torch.float64)
    order = logprobs.argsort(descending=True, stable=True)
    return Listed(ids[order], logprobs[order])


def _divergence(expected: torch.Tensor, listed: Listed) -> float:
    """KL(expected ‖ listed) over the listed ids and, as one, all others; nan where either is no distribution."""
    if bool(expected.isnan().any()) or bool(listed.logprobs.isnan().any()):
        return math.nan
    # A softmax over many ids in float32 is normalised to a few millionths only.
    expected = torch.log_softmax(expected.double(), 0)
    known = listed.ids < expected.shape[0]
    ids, theirs = listed.ids[known], listed.logprobs[known] + _lost_in_sum(expected)
    mine = expected[ids]
    shares = mine.exp()
    divergence = float(torch.where(shares > 0, shares * (mine - theirs), 0.0).sum())
    rest_mine = max(0.0, 1.0 - float(shares.sum()))
    rest_theirs = max(1e-12, 1.0 - float(theirs.exp().sum()))
    if rest_mine > 1e-9 and len(ids) < expected.shape[0]:
        divergence += rest_mine * (math.log(rest_mine) - math.log(rest_theirs))
    return max(0.0, divergence)


def _lost_in_sum(logprobs: torch.Tensor) -> float:
    """What llama.cpp's listed log-probabilities are too large by, as a negative number to add, nats.

    It sums the exponentials of all ids one after the other in float32, the largest first: what is smaller than 6e-8 of the sum
    so far is lost. Of 262,144 ids that may be a thousandth of all probability, which then seems to be missing from the ids that
    are not listed. The same sum over the reference's probabilities tells how much.

    Args:
        logprobs: The reference's log-probabilities of all ids, [V] float64.
    """
    shares = (logprobs - logprobs.max()).exp().sort(descending=True).values.float().numpy()
    return math.log(float(np.add.accumulate(shares, dtype=np.float32)[-1])) - math.log(
        float(shares.sum(dtype=np.float64))
    )
