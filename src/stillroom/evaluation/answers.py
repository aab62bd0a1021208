"""A model that answers: log-likelihoods of texts, greedy continuations, chats.

Texts are split into tokens the way lm-evaluation-harness does it (Gao et al., doi:10.5281/zenodo.12608602), so that its numbers
and ours are the same quantity: context and continuation are encoded together, white space at the context's end goes to the
continuation, and what does not fit the window is cut off on the left. The window is the model's own; where a prompt and the
longest answer together do not fit it, the prompt is kept and the answer is shorter (lm-evaluation-harness cuts the prompt).

Legend: B texts, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from stillroom.core.errors import UnsupportedModel
from stillroom.evaluation.bench import Loaded
from stillroom.models.compute import exact
from stillroom.models.forward import hidden_states, logits_from_hidden
from stillroom.models.generation import continuations

if TYPE_CHECKING:
    from stillroom.models.types import Tokenizer

BATCH = 16
WINDOW = 2048
"""Tokens of context of a model that does not say its own, and of windows on a text that is scored as a whole."""
ANSWER_SHARE = 4
"""A prompt that does not fit the window leaves at least one in so many of its tokens to the answer."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: Without special tokens and without the stop text.
        tokens: Tokens written.
        ended: Whether it ended by itself or at a stop text, not at the limit.
        ids: The tokens themselves; the end token is kept where there is one.
    """

    text: str
    tokens: int
    ended: bool
    ids: tuple[int, ...] = ()


class Speaker:
    """One model with its own tokenizer.

    Args:
        loaded: The model.
        window: Tokens of context at most; the model's own limit without it.

    Attributes:
        cut: Of each prompt or pair of the last call, whether it did not fit the window and lost its beginning.
    """

    def __init__(self, loaded: Loaded, window: int | None = None) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.used = loaded.vocabulary.student_used
        self.device = next(self.model.parameters()).device
        limit = getattr(self.model.config, "max_position_embeddings", None) or WINDOW
        self.window = min(window or limit, limit)
        self.cut: list[bool] = []
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self._start: int | None = start if start is not None else end
        # Fills up rows; nothing attends to it.
        self._filler = self._start or 0

    @property
    def prefix(self) -> int:
        """The token in front of a text that begins with nothing.

        Raises:
            UnsupportedModel: The tokenizer has neither a beginning nor an end of texts.
        """
        if self._start is None:
            raise UnsupportedModel(
                "The tokenizer has neither a token for the beginning of a text nor one for its end, so that its first token "
                "cannot be scored.",
                "Leave out `tasks` with empty contexts and with whole texts, or give the tokenizer a `bos_token`.",
            )
        return self._start

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, without special ones around it."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what follows it."""
        bare = context.rstrip()
        if not bare:
            return [self.prefix], self.encode(context + continuation)
        context, continuation = bare, context[len(bare) :] + continuation
        first = self.encode(context)
        return first, self.encode(context + continuation)[len(first) :]

    @torch.inference_mode()
    def log_likelihoods(
        self, pairs: Sequence[tuple[str, str]], advance: Callable[[int], None] | None = None
    ) -> list[tuple[float, bool]]:
        """Nats of each continuation after its context (negative), and whether greedy decoding would write it."""
        encoded = [self.pair(*pair) for pair in pairs]
        self.cut = [len(before) + len(after) > self.window + 1 for before, after in encoded]
        return self._scores(encoded, advance)

    @torch.inference_mode()
    def would_write(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[bool]:
        """Whether greedy decoding would write each continuation after its context, both in the model's tokens."""
        return [greedy for _, greedy in self._scores(pairs)]

    def _scores(
        self, pairs: Sequence[tuple[list[int], list[int]]], advance: Callable[[int], None] | None = None
    ) -> list[tuple[float, bool]]:
        """Of each continuation after its context, in tokens: its log-likelihood, and whether it is the greedy one."""
        order = sorted(range(len(pairs)), key=lambda index: -len(pairs[index][0]) - len(pairs[index][1]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            rows = [self._row(*pairs[index]) for index in chosen]
            states = self._states([row[0] for row in rows])
            for index, (ids, targets), state in zip(chosen, rows, states, strict=True):
                found[index] = self._score(state, len(ids), targets)
            if advance is not None:
                advance(len(chosen))
        return found

    @torch.inference_mode()
    def rolling(self, text: str) -> float:
        """Log-likelihood of a whole text in nats (negative): each token once, after as much context as fits.

        Windows of at most :data:`WINDOW` tokens do not overlap but for one token, and the first begins with the
        beginning-of-text token.
        """
        ids, window = self.encode(text), min(self.window, WINDOW)
        total, place = 0.0, 0
        while place < len(ids):
            # The last window reaches back, so that its tokens have as much context as those before.
            stop = min(place + window, len(ids))
            if place == 0:
                context, targets = [self.prefix], ids[:stop]
            else:
                context, targets = ids[max(0, stop - window - 1) : place], ids[place:stop]
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
        return self.answers(encoded, max_tokens, stops, advance)

    @torch.inference_mode()
    def answers(
        self,
        prompts: Sequence[list[int]],
        max_tokens: int,
        stops: Sequence[str] = (),
        advance: Callable[[int], None] | None = None,
        batch: int = BATCH,
    ) -> list[Answer]:
        """Greedy continuations of prompts in tokens, ``batch`` at a time."""
        from stillroom.models.tokenizer import quietly

        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        found: list[Answer] = [Answer("", 0, True)] * len(prompts)
        self.cut = [False] * len(prompts)
        ends = self._ends()
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            # The prompt comes first: what it leaves of the window is the answer's.
            longest = len(prompts[chosen[0]])
            limit = max(min(max_tokens, self.window // ANSWER_SHARE), min(max_tokens, self.window - longest))
            rows = [prompts[index][limit - self.window :] for index in chosen]
            for index, row in zip(chosen, rows, strict=True):
                self.cut[index] = len(row) < len(prompts[index])
            options: dict[str, Any] = {"stop_strings": list(stops), "tokenizer": self.tokenizer} if stops else {}
            with quietly():
                written = continuations(
                    self.model,
                    rows,
                    limit,
                    ends,
                    padding=self._filler,
                    logits_processor=[_Real(self.used)],
                    **options,
                )
            for index, row in zip(chosen, written, strict=True):
                found[index] = self._answer(row, limit, stops)
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

    def _answer(self, ids: list[int], limit: int, stops: Sequence[str]) -> Answer:
        """What was written, from its tokens: cut at the first stop text; ``limit`` is the most tokens it could have."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        ended = bool(ids) and ids[-1] in self._ends()
        for stop in stops:
            if stop and stop in text:
                text, ended = text[: text.index(stop)], True
        return Answer(text, len(ids), ended or len(ids) < limit, tuple(ids))

    def _row(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        whole = (context + continuation)[-(self.window + 1) :]
        return whole[:-1], continuation[-len(whole) + 1 :] if len(continuation) >= len(whole) else continuation

    def _states(self, rows: list[list[int]]) -> list[torch.Tensor]:
        """Final hidden states of rows; padding is on the right, where nothing attends to it."""
        length = max(map(len, rows))
        ids = torch.tensor([row + [self._filler] * (length - len(row)) for row in rows], device=self.device)
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
