"""A model that answers: log-likelihoods of texts, greedy continuations, chats.

Texts are split into tokens the way lm-evaluation-harness does it (Gao et al., doi:10.5281/zenodo.12608602), so that its numbers
and ours are the same quantity: context and continuation are encoded together, white space at the context's end goes to the
continuation, and what does not fit the window is cut off on the left.

Legend: B texts, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stillroom.evaluation.bench import Loaded
from stillroom.models.compute import exact
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.generation import continuations

if TYPE_CHECKING:
    from stillroom.models.types import Tokenizer

BATCH = 16


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: Without special tokens and without the stop text.
        tokens: Tokens written.
        ended: Whether it ended by itself or at a stop text, not at the limit.
    """

    text: str
    tokens: int
    ended: bool


class Speaker:
    """One model with its own tokenizer.

    Args:
        loaded: The model.
        window: Tokens of context at most; the model's own limit without it.
    """

    def __init__(self, loaded: Loaded, window: int | None = None) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.used = loaded.vocabulary.student_used
        self.device = next(self.model.parameters()).device
        self.window = min(window or 2048, getattr(self.model.config, "max_position_embeddings", None) or 2048)
        start = self.tokenizer.bos_token_id
        self.prefix: int = start if start is not None else self.tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special ones around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what follows it."""
        if not context:
            return [self.prefix], self.encode(continuation)
        bare = context.rstrip()
        context, continuation = bare, context[len(bare) :] + continuation
        first = self.encode(context)
        return first, self.encode(context + continuation)[len(first) :]

    @torch.inference_mode()
    def log_likelihoods(
        self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], None] | None = None
    ) -> list[tuple[float, bool]]:
        """Nats of each continuation after its context (negative), and whether greedy decoding would write it."""
        encoded = [self.pair(*pair) for pair in pairs]
        order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index][0]) - len(encoded[index][1]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(encoded)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            rows = [self._row(*encoded[index]) for index in chosen]
            states = self._states([row[0] for row in rows])
            for index, (ids, targets), state in zip(chosen, rows, states, strict=True):
                found[index] = self._score(state, len(ids), targets)
            if advance is not None:
                advance(len(chosen))
        return found

    @torch.inference_mode()
    def would_write(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Whether greedy decoding would write each continuation after its context, both in the model's tokens."""
        order = sorted(range(len(pairs)), key=lambda index: -len(pairs[index][0]) - len(pairs[index][1]))
        found = [False] * len(pairs)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            rows = [self._row(*pairs[index]) for index in chosen]
            states = self._states([row[0] for row in rows])
            for index, (ids, targets), state in zip(chosen, rows, states, strict=True):
                found[index] = self._score(state, len(ids), targets)[1]
        return found

    @torch.inference_mode()
    def rolling(self, text: str) -> float:
        """Log-likelihood of a whole text in nats (negative): each token once, after as much context as fits.

        Windows do not overlap but for one token, and the first begins with the beginning-of-text token.
        """
        ids = self.encode(text)
        total, place = 0.0, 0
        while place < len(ids):
            # The last window reaches back, so that its tokens have as much context as those before.
            stop = min(place + self.window, len(ids))
            if place == 0:
                context, targets = [self.prefix], ids[:stop]
            else:
                context, targets = ids[max(0, stop - self.window - 1) : place], ids[place:stop]
            row = (context + targets)[:-1]
            total += self._score(self._states([row])[0], len(row), targets)[0]
            place = stop
        return total

    @torch.inference_mode()
    def write(
        self,
        prompts: Sequence[str],
        max_tokens: int,
        stops: Sequence[str] = (),
        advance: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Greedy continuations of texts, in batches of like length."""
        encoded = [self.encode(prompt) or [self.prefix] for prompt in prompts]
        return [self.answer(ids, stops, max_tokens) for ids in self.continue_ids(encoded, max_tokens, stops, advance)]

    @torch.inference_mode()
    def continue_ids(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        stops: Sequence[str] = (),
        advance: Callable[[int], None] | None = None,
        batch: int = BATCH,
    ) -> list[list[int]]:
        """Greedy continuations in tokens, ``batch`` prompts at a time; the end token is kept where there is one."""
        from stillroom.models.tokenizer import quietly

        room = max(1, self.window - max_tokens)
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        found: list[list[int]] = [[] for _ in prompts]
        ends = self._ends()
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            rows = [prompts[index][-room:] for index in chosen]
            options: dict[str, Any] = {"stop_strings": list(stops), "tokenizer": self.tokenizer} if stops else {}
            with quietly():
                written = continuations(
                    self.model,
                    rows,
                    max_tokens,
                    ends,
                    padding=self.prefix,
                    logits_processor=[_Real(self.used)],
                    **options,
                )
            for index, row in zip(chosen, written, strict=True):
                found[index] = row
            if advance is not None:
                advance(len(chosen))
        return found

    def prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """Messages under the model's chat template, or a plain text where it has none."""
        return prompt_of(self.tokenizer, messages, tools)

    def chat(
        self, questions: Sequence[str], max_tokens: int, advance: Callable[[int], None] | None = None
    ) -> list[Answer]:
        """Answers to single questions."""
        prompts = [self.prompt([{"role": "user", "content": question}]) for question in questions]
        return self.write(prompts, max_tokens, advance=advance)

    def _ends(self) -> set[int]:
        """Tokens that end an answer."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        ends = set(configured if isinstance(configured, list) else [configured])
        ends.add(self.tokenizer.eos_token_id)
        return {end for end in ends if end is not None and end < self.used}

    def answer(self, ids: list[int], stops: Sequence[str], limit: int) -> Answer:
        """What was written, from its tokens: cut at the first stop text; ``limit`` is the most tokens it could have."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        ended = bool(ids) and ids[-1] in self._ends()
        for stop in stops:
            if stop and stop in text:
                text, ended = text[: text.index(stop)], True
        return Answer(text, len(ids), ended or len(ids) < limit)

    def _row(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        whole = (context + continuation)[-(self.window + 1) :]
        return whole[:-1], continuation[-len(whole) + 1 :] if len(continuation) >= len(whole) else continuation

    def _states(self, rows: list[list[int]]) -> list[torch.Tensor]:
        """Final hidden states of rows; padding is on the right, where nothing attends to it."""
        length = max(map(len, rows))
        ids = torch.tensor([row + [self.prefix] * (length - len(row)) for row in rows], device=self.device)
        positions = torch.arange(length, device=self.device).expand(len(rows), -1)
        return list(hidden_states(self.model, ids, positions))

    def _score(self, states: torch.Tensor, length: int, targets: list[int]) -> tuple[float, bool]:
        """Sum of the targets' log-probabilities at the end of a row of ``length`` tokens."""
        if not targets:
            return 0.0, True
        total, greedy = 0.0, True
        begin = length - len(targets)
        for start in range(0, len(targets), 256):
            some = torch.tensor(targets[start : start + 256], device=self.device)
            logits = logits_from_hidden(self.model, states[begin + start : begin + start + len(some)])[:, : self.used]
            logprobs = torch.log_softmax(logits, dim=1)
            total += float(exact(logprobs.gather(1, some[:, None])).sum())
            greedy = greedy and bool((logprobs.argmax(1) == some).all())
        return total, greedy


def prompt_of(tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    """Messages under a tokenizer's chat template, or a plain text where it has none."""
    template = tokenizer.chat_template
    if not isinstance(template, str):
        said = "\n".join(str(message["content"]) for message in messages)
        return f"{said}\n"
    from stillroom.inspection.template import render_chat

    special = {key: value or "" for key, value in tokenizer.special_tokens_map.items() if key.endswith("_token")}
    return render_chat(template, messages, where="evaluate", add_generation_prompt=True, tools=tools, **special)


class _Real:
    """Keeps generation to real ids: padding rows of the output can never be said."""

    def __init__(self, used: int) -> None:
        self.used = used

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.used :] = float("-inf")
        return scores
