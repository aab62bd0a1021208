"""Who writes: a model on this machine, or a chat endpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from stillroom.core import files
from stillroom.core.errors import TeacherError
from stillroom.models.generation import continuations
from stillroom.models.load import LoadedTeacher
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.teachers.endpoint.http import Client

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ROWS = 8
"""Texts that a local model writes together."""
SPARE_TOKENS = 64
"""Prompt tokens that a chat template may add."""


@dataclass(frozen=True)
class Ask:
    """One text to be written.

    Attributes:
        key: What the text is addressed by: writer, prompt, sampling and draw.
        prompt: The user's message.
        document: SHA-256 of the document that it is about.
    """

    key: str
    prompt: str
    document: str = ""


@dataclass(frozen=True)
class Text:
    """What was written, and whether the writer ended it by itself."""

    text: str
    ended: bool


class Writer(Protocol):
    """Writes texts."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a text depends on besides its prompt."""
        ...

    def write(
        self, asks: Sequence[Ask], known: Callable[[str], bool], keep: Callable[[Ask, Text], None]
    ) -> Iterator[Ask]:
        """Write the texts that are not there yet, in any order; yields what has been written.

        Args:
            asks: All that are wanted, in a fixed order.
            known: Whether the text of a key is there already: nothing is paid for twice.
            keep: Is given each text as soon as it is there, before anything can end the work; by several threads.
        """
        ...


@dataclass(frozen=True)
class LocalWriter:
    """A model in this process.

    Attributes:
        loaded: The model.
        digest: Of its files, with chat template and tokenizer, and its dtype.
        max_tokens: Tokens of a text at most.
        temperature: 0 takes the most probable token each time.
        seed: Of the sampling, together with each group's keys.
    """

    loaded: LoadedTeacher
    digest: str
    max_tokens: int
    temperature: float
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """See :class:`Writer`."""
        return {
            "teacher": self.digest,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def write(
        self, asks: Sequence[Ask], known: Callable[[str], bool], keep: Callable[[Ask, Text], None]
    ) -> Iterator[Ask]:
        """See :class:`Writer`. Groups are the same whatever is known, so that a text is the same after a kill."""
        self._require_fitting(ask for ask in asks if not known(ask.key))
        for start in range(0, len(asks), ROWS):
            group = asks[start : start + ROWS]
            new = [ask for ask in group if not known(ask.key)]
            if new:
                texts = dict(zip((ask.key for ask in group), self._group(group), strict=True))
                for ask in new:
                    keep(ask, texts[ask.key])
                yield from new

    def _require_fitting(self, asks: Iterable[Ask]) -> None:
        """Refuse prompts that are too long, before the first text of many is written."""
        window = getattr(self.loaded.model.config, "max_position_embeddings", None)
        longest = max((len(prompt_ids(self.loaded.tokenizer, ask.prompt)) for ask in asks), default=0)
        if window is not None and longest + self.max_tokens > window:
            raise TeacherError(
                f"A prompt of {longest:,} tokens and {self.max_tokens:,} to write are more than the {window:,} that the writer "
                "can see.",
                "Lower `write.chunk_characters` or `write.max_tokens`.",
            )

    def _group(self, group: Sequence[Ask]) -> list[Text]:
        model: Any = self.loaded.model
        tokenizer = self.loaded.tokenizer
        rows = [prompt_ids(tokenizer, ask.prompt) for ask in group]
        seed = int(files.digest_json([self.seed, [ask.key for ask in group]])[:15], 16)
        ends = ends_of(model, tokenizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = continuations(model, rows, self.max_tokens, ends, temperature=self.temperature)
        texts = []
        for row in found:
            ended = bool(row) and row[-1] in ends
            texts.append(Text(str(tokenizer.decode(row[:-1] if ended else row, skip_special_tokens=True)), ended))
        return texts


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """A user's message as the model's chat template has it, or plainly where there is none."""
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": prompt}]
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return [int(token) for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return [int(token) for token in tokenizer(f"{prompt}\n\n")["input_ids"]]


def ends_of(model: Any, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """The ids that end an answer: the tokenizer's, and what the model's own configuration adds."""
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {*stated} if isinstance(stated, (list, tuple)) else {stated}
    return {int(token) for token in {*found, tokenizer.eos_token_id} if token is not None}


@dataclass(frozen=True)
class ChatWriter:
    """A server with an OpenAI-style chat API: `/v1/chat/completions`.

    Attributes:
        client: Talks to it, within the recipe's spend cap.
        config: The endpoint.
        max_tokens: Tokens of a text at most.
        temperature: Of its sampling.
        seed: Sent with each request; not every server heeds it.
        said: What the user was warned of, once.
    """

    client: Client
    config: EndpointConfig
    max_tokens: int
    temperature: float
    seed: int
    said: list[str] = field(default_factory=list, compare=False)

    @property
    def identity(self) -> dict[str, Any]:
        """See :class:`Writer`. Where it is served is no part of it."""
        return {
            "model": self.config.model,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }

    def write(
        self, asks: Sequence[Ask], known: Callable[[str], bool], keep: Callable[[Ask, Text], None]
    ) -> Iterator[Ask]:
        """See :class:`Writer`. What is under way when a request fails, or the work is ended, is paid for: it is waited for and
        kept.
        """

        def written(ask: Ask) -> Ask:
            keep(ask, self._one(ask))
            return ask

        todo = [ask for ask in asks if not known(ask.key)]
        at = self.config.concurrency
        with ThreadPoolExecutor(at, "writer") as pool:
            for start in range(0, len(todo), at):
                failure: BaseException | None = None
                for future in as_completed([pool.submit(written, ask) for ask in todo[start : start + at]]):
                    error = future.exception()
                    if error is None:
                        yield future.result()
                    elif failure is None:
                        failure = error
                if failure is not None:
                    raise failure

    def _one(self, ask: Ask) -> Text:
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": ask.prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": int(files.digest_json([self.seed, ask.key])[:7], 16),
        }
        # A token is at least one byte of text, so that this is no fewer than it can be.
        most = len(ask.prompt.encode()) + SPARE_TOKENS
        value = self.client.post("/v1/chat/completions", body, most, self.max_tokens, ask.key)
        try:
            choice = value["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (KeyError, IndexError, TypeError):
            text, reason = None, None
        if text is None and isinstance(reason, str):
            # It thought until the limit, or would not answer: paid for, and a text that is left out.
            return Text("", ended=False)
        if not isinstance(text, str):
            raise TeacherError(
                f"{self.client.base_url}: the server's answer has no text (`choices[0].message.content`).",
                "Serve the model with an OpenAI-style chat API; what was received before is kept.",
            )
        return Text(text, reason in ("stop", "eos") or (reason is None and self._ended(value)))

    def _ended(self, answer: dict[str, Any]) -> bool:
        """Whether a text ended before the limit, where the server does not say why it ended: by the tokens that it counts."""
        usage = answer.get("usage")
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if isinstance(count, int) and not isinstance(count, bool):
            return count < self.max_tokens
        if not self.said:
            self.said.append(
                f"{self.client.base_url} says neither why a text ended (`finish_reason`) nor how many tokens it has (`usage`): "
                "whether texts were cut off at `write.max_tokens` is not known, and they are kept."
            )
            logging.getLogger("stillroom.teachers").warning(self.said[0])
        return True
