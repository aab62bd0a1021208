"""How each kind of server scores a given text: one class a kind, all with the same contract.

Legend: L tokens of a text, N = L − 1 positions (token i predicts token i + 1), K listed ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

import torch

from stillroom.core.errors import TeacherError
from stillroom.signals.cache.observed import LEAST_REST
from stillroom.signals.signal import CoarseSignal
from stillroom.teachers.endpoint.http import Client, Refused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MASS = 1e-3
"""How far above 1 rounding may bring the sum of listed probabilities."""
LARGEST_ID = (1 << 31) - 1
"""No vocabulary has a larger id."""
LARGEST_REAL = torch.finfo(torch.float32).max
"""Log-probabilities are kept in float32; JSON's 1e999 is infinite."""
Listed = list[tuple[int, float]]
"""Ids and log-probabilities of one position."""


@dataclass
class Server(ABC):
    """One server and the model asked for.

    Attributes:
        client: Talks to it; its base URL has no ``/v1``.
        model: The model's name there.
        tokenizer: The recipe's tokenizer.
        size: Ids of the model's distribution.
        top: Ids that are asked for per position.
    """

    client: Client
    model: str
    tokenizer: PreTrainedTokenizerFast
    size: int
    top: int

    kind: ClassVar[str]
    most: ClassVar[int | None] = None
    """Ids that it lists at most whatever is asked; None: no known limit."""

    def __post_init__(self) -> None:
        self.known_model: str | None = None

    @property
    def where(self) -> str:
        """The server, as messages begin."""
        return f"{self.client.base_url} ({self.kind})"

    @abstractmethod
    def lists(self, ids: list[int], what: str) -> list[Listed]:
        """The listed ids of each of the N positions of a text, from requests that are paid for.

        Args:
            ids: The text, at least two tokens.
            what: Its address, for the record of spending.

        Raises:
            TeacherError: The answer is not what was asked for; says how.
        """

    def tokens(self, text: str) -> list[int] | None:  # noqa: ARG002
        """The ids of a text by the server's own tokenizer, without special tokens; None where it does not tell."""
        return None

    def cost(self, length: int) -> tuple[int, int]:
        """Prompt tokens and generated tokens that scoring a text of so many tokens takes."""
        return length, 1

    def score(self, ids: list[int], what: str) -> CoarseSignal:
        """The teacher's signal of the N positions of a text. Arguments and errors as in :meth:`lists`."""
        if len(ids) < 2:
            return CoarseSignal(torch.zeros(0, self.top, dtype=torch.int64), torch.zeros(0, self.top), torch.zeros(0))
        found = self.lists(ids, what)
        if len(found) != len(ids) - 1:
            raise self.fault(f"it dropped positions: {len(found)} of {len(ids) - 1} were answered")
        wanted = min(self.top, self.size)
        for place, entries in enumerate(found):
            if len(entries) < wanted:
                raise self.fault(
                    f"it lists fewer ids than were asked for: {len(entries)} instead of {wanted} at position {place}",
                    f"Set `teacher.top: {max(1, len(entries))}`.",
                )
        return self._signal(found, wanted)

    def _signal(self, found: list[Listed], wanted: int) -> CoarseSignal:
        best = [sorted(entries, key=lambda entry: -entry[1])[:wanted] for entries in found]
        ids = torch.tensor([[token for token, _ in entries] for entries in best], dtype=torch.int64)
        logprobs = torch.tensor([[value for _, value in entries] for entries in best], dtype=torch.float64)
        if bool(torch.isnan(logprobs).any()):
            raise self.fault("a probability is not a number")
        mass = logprobs.exp().sum(1)
        if bool((mass > 1 + MASS).any()) or bool((logprobs > MASS).any()):
            raise self.fault(
                f"the probabilities sum to more than 1 ({float(mass.max()):.4g})",
                "The server lists something else than the log-probabilities of the model at temperature 1.",
            )
        rest = (1.0 - mass).clamp_min(LEAST_REST if wanted < self.size else 0.0)
        signal = CoarseSignal(ids, logprobs.float(), rest.float())
        fault = signal.fault(self.size)
        if fault is not None:
            raise self.fault(fault)
        return signal

    def fault(self, what: str, todo: str = "") -> TeacherError:
        """An answer that is not what was asked for."""
        return TeacherError(
            f"{self.where}: the server's answer is not what was asked for: {self.client.without_key(what)}.",
            todo or "Run `stillroom teacher probe` on the endpoint; what was received before is kept.",
        )

    def require_model(self, value: dict[str, Any]) -> None:
        """Refuse an answer of another model than the answers before, where answers say it."""
        said = value.get("model")
        if not isinstance(said, str):
            return
        if self.known_model is None:
            self.known_model = said
        elif said != self.known_model:
            raise self.fault(f"another model answers: {said!r} after {self.known_model!r}")

    def require_ids(self, said: Any, ids: list[int], whose: str) -> None:
        """Refuse an answer about other tokens than were sent."""
        if said == ids:
            return
        both = zip(said, ids, strict=False) if isinstance(said, list) else iter(())
        for place, (theirs, ours) in enumerate(both):
            if theirs != ours:
                raise self.fault(
                    f"its tokens are not those of the recipe's tokenizer: {whose} {place} is id {theirs!r} there and {ours} "
                    "here",
                    "Set `teacher.tokenizer` to the tokenizer of the served model.",
                )
        count = len(said) if isinstance(said, list) else 0
        raise self.fault(f"it dropped positions: {count} of {len(ids)} tokens were answered")

    def entries(self, pairs: Iterable[tuple[Any, Any]]) -> Listed:
        """Ids and log-probabilities of an answer, checked to be numbers."""
        found: Listed = []
        for token, value in pairs:
            logprob = _real(value)
            if logprob is None:
                raise self.fault(f"a log-probability is {repr(value)[:200]}")
            number = _whole(token)
            if number is None or not -LARGEST_ID <= number <= LARGEST_ID:
                # Not within an `except`: the error there quotes what the server said, which may be the key.
                raise self.fault(f"an id is {str(token)[:200]!r}")
            found.append((number, logprob))
        return found


class Unasked(Server):
    """In place of a server that has nothing to be asked for: everything that is wanted of it is in a cache."""

    kind = "not asked"

    def lists(self, ids: list[int], what: str) -> list[Listed]:  # noqa: ARG002
        """See :meth:`Server.lists`."""
        raise self.fault("it was opened for what its cache has, and is asked for something")


class LlamaCpp(Server):
    """llama.cpp's server. It scores no prompts; but a grammar of token literals forces it to write the text, and it lists the
    probabilities of what it writes. They are those of the plain softmax, whatever samplers and grammar do.

    A server from before token literals (December 2025) refuses the grammar; then each position is a request of its own. So is
    the position before a token that ends generation, or that is a part of a character: there it lists nothing.
    """

    kind = "llamacpp"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._forced = True
        # Whatever is forced, the list is the same; an ordinary letter is what no server stops at.
        self._harmless = int(self.tokenizer("a", add_special_tokens=False)["input_ids"][-1])

    def cost(self, length: int) -> tuple[int, int]:
        """See :meth:`Server.cost`."""
        return 1, max(0, length - 1)

    def tokens(self, text: str) -> list[int] | None:
        """See :meth:`Server.tokens`."""
        try:
            value = self.client.post("/tokenize", {"content": text, "add_special": False}, 0, 0, "tokenize")
        except Refused:
            return None
        found = value.get("tokens")
        return found if isinstance(found, list) and all(isinstance(token, int) for token in found) else None

    def lists(self, ids: list[int], what: str) -> list[Listed]:
        """See :meth:`Server.lists`."""
        found: list[Listed] = []
        # found[i] is of the position that predicts ids[i + 1].
        while len(found) < len(ids) - 1:
            begin = len(found) + 1
            end = begin
            while end < len(ids) and not self._unlisted(ids[end]):
                end += 1
            if end - begin < 2 or not self._forced:
                found.append(self._one(ids[:begin], what))
                continue
            found += self._run(ids, begin, end, what)
        return found

    def _unlisted(self, token: int) -> bool:
        """Whether the server may list nothing where it has to write this token: it ends the text, or is part of a character."""
        return token in self.tokenizer.all_special_ids or "\ufffd" in self.tokenizer.decode([token])

    def _run(self, ids: list[int], begin: int, end: int, what: str) -> list[Listed]:
        """The positions before tokens ``begin`` to ``end``, in one request."""
        grammar = "root ::= " + " ".join(f"<[{token}]>" for token in ids[begin:end])
        body = self._body(ids[:begin], end - begin) | {"grammar": grammar}
        try:
            value = self.client.post("/completion", body, begin, end - begin, what)
        except Refused as error:
            if error.status != 400 or "grammar" not in error.what.lower():
                raise
            self._forced = False
            return []
        entries = self._probabilities(value)
        self.require_ids([entry.get("id") for entry in entries], ids[begin:end], "written token")
        return [self._top(entry) for entry in entries]

    def _one(self, prompt: list[int], what: str) -> Listed:
        body = self._body(prompt, 1) | {"cache_prompt": True, "logit_bias": [[self._harmless, 1e6]]}
        entries = self._probabilities(self.client.post("/completion", body, len(prompt), 1, what))
        if len(entries) != 1:
            raise self.fault(f"it dropped positions: {len(entries)} of 1 were answered")
        return self._top(entries[0])

    def _body(self, prompt: list[int], count: int) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "n_predict": count,
            "n_probs": min(self.top, self.size),
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "typical_p": 1.0,
            "repeat_penalty": 1.0,
            "seed": 0,
            "return_tokens": True,
            "cache_prompt": False,
        }

    def _probabilities(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        self.require_model(value)
        entries = value.get("completion_probabilities")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise self.fault("it ignored `n_probs`: no log-probabilities were answered")
        return entries

    def _top(self, entry: dict[str, Any]) -> Listed:
        top = entry.get("top_logprobs")
        if not isinstance(top, list) or not all(isinstance(item, dict) for item in top):
            raise self.fault("it ignored `n_probs`: a position has no list")
        return self.entries((item.get("id"), item.get("logprob")) for item in top)


class Vllm(Server):
    """vLLM: ``prompt_logprobs`` of ``/v1/completions``. It adds the text's own token to a list; the rank tells which."""

    kind = "vllm"

    def lists(self, ids: list[int], what: str) -> list[Listed]:
        """See :meth:`Server.lists`."""
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 1.0,
            "prompt_logprobs": min(self.top, self.size),
            "return_token_ids": True,
        }
        value = self.client.post("/v1/completions", body, len(ids), 1, what)
        self.require_model(value)
        choice = first_choice(self, value)
        said = choice.get("prompt_logprobs")
        if not isinstance(said, list):
            raise self.fault("it ignored `prompt_logprobs`: the given text was not scored")
        if isinstance(choice.get("prompt_token_ids"), list):
            self.require_ids(choice["prompt_token_ids"], ids, "token")
        found = []
        for place, entry in enumerate(said[1:]):
            if not isinstance(entry, dict) or not all(isinstance(item, dict) for item in entry.values()):
                raise self.fault("a position has no list")
            if place + 1 < len(ids) and str(ids[place + 1]) not in entry:
                raise self.fault(
                    f"the list of position {place} is of another text: it does not have the text's own token "
                    f"{ids[place + 1]}, which vLLM always adds"
                )
            ranked = {
                token: item
                for token, item in entry.items()
                if not isinstance(item.get("rank"), int) or item["rank"] <= self.top
            }
            found.append(self.entries((token, item.get("logprob")) for token, item in ranked.items()))
        if len(said) != len(ids):
            raise self.fault(f"it dropped positions: {max(0, len(said) - 1)} of {len(ids) - 1} were answered")
        return found

    def tokens(self, text: str) -> list[int] | None:
        """See :meth:`Server.tokens`."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            found = self.client.post("/tokenize", body, 0, 0, "tokenize").get("tokens")
        except Refused:
            return None
        return found if isinstance(found, list) and all(isinstance(token, int) for token in found) else None


class Sglang(Server):
    """SGLang: its own ``/generate``. Its prefix cache can cut off the beginning, which the count shows."""

    kind = "sglang"

    def lists(self, ids: list[int], what: str) -> list[Listed]:
        """See :meth:`Server.lists`."""
        body = {
            "input_ids": ids,
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": min(self.top, self.size),
            "sampling_params": {"max_new_tokens": 1, "temperature": 1.0},
        }
        value = self.client.post("/generate", body, len(ids), 1, what)
        meta = value.get("meta_info")
        self.require_model(meta if isinstance(meta, dict) else value)
        own = meta.get("input_token_logprobs") if isinstance(meta, dict) else None
        top = meta.get("input_top_logprobs") if isinstance(meta, dict) else None
        if not isinstance(own, list) or not isinstance(top, list):
            raise self.fault("it ignored `return_logprob`: the given text was not scored")
        if len(own) != len(ids) or len(top) != len(ids):
            raise self.fault(
                f"it dropped positions: {max(0, min(len(own), len(top)) - 1)} of {len(ids) - 1} were answered",
                "Start the server with `--disable-radix-cache`: its cache cuts off scores of given text.",
            )
        self.require_ids([item[1] if isinstance(item, list) and len(item) > 1 else None for item in own], ids, "token")
        found = []
        for entry in top[1:]:
            if not isinstance(entry, list) or not all(isinstance(item, list) and len(item) > 1 for item in entry):
                raise self.fault("a position has no list")
            found.append(self.entries((item[1], item[0]) for item in entry))
        return found


class Completions(Server):
    """The older completions API with ``echo``: ids of the prompt in, log-probabilities of the prompt out.

    Tokens of the lists come as text, which has to mean one id.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._by_text: dict[str, int] = {}
        self._ambiguous: set[str] = set()
        for token in range(len(self.tokenizer)):
            text = str(self.tokenizer.decode([token]))
            if text in self._by_text:
                self._ambiguous.add(text)
            self._by_text[text] = token

    def lists(self, ids: list[int], what: str) -> list[Listed]:
        """See :meth:`Server.lists`."""
        body = {
            "model": self.model,
            "prompt": self.prompt(ids),
            "max_tokens": 1,
            "temperature": 1.0,
            "echo": True,
            "logprobs": min(self.top, self.size),
            "return_token_ids": True,
        }
        value = self.client.post("/v1/completions", body, len(ids), 1, what)
        self.require_model(value)
        choice = first_choice(self, value)
        # Together has the prompt's apart; the others put it before what was generated.
        prompts = value.get("prompt")
        apart = prompts[0] if isinstance(prompts, list) and prompts and isinstance(prompts[0], dict) else choice
        said = apart.get("logprobs")
        tops = said.get("top_logprobs") if isinstance(said, dict) else None
        if not isinstance(said, dict) or not isinstance(tops, list) or len(tops) < 2:
            raise self.fault("it ignored `echo`: the given text was not scored")
        theirs = said.get("token_ids") or apart.get("prompt_token_ids") or choice.get("prompt_token_ids")
        if isinstance(theirs, list):
            self.require_ids(theirs[: len(ids)], ids, "token")
        else:
            tokens = said.get("tokens")
            self.require_ids(
                [self._id(text) for text in tokens[: len(ids)]] if isinstance(tokens, list) else None, ids, "token"
            )
        if len(tops) < len(ids):
            raise self.fault(f"it dropped positions: {max(0, len(tops) - 1)} of {len(ids) - 1} were answered")
        found = []
        for entry in tops[1 : len(ids)]:
            if not isinstance(entry, dict):
                raise self.fault("a position has no list")
            found.append(self.entries((self._id(text), value) for text, value in entry.items()))
        return found

    def prompt(self, ids: list[int]) -> list[int] | str:
        """The text as the server takes it."""
        return ids

    def _id(self, text: Any) -> int:
        """The id of a token that is given as text, or as ``token_id:N``."""
        if isinstance(text, str) and text.startswith("token_id:") and text[9:].isascii() and text[9:].isdigit():
            number = _whole(text[9:])
            if number is not None:
                return number
        if not isinstance(text, str) or text not in self._by_text:
            raise self.fault(
                f"its tokens are not those of the recipe's tokenizer: there is no token {repr(text)[:200]}",
                "Set `teacher.tokenizer` to the tokenizer of the served model.",
            )
        if text in self._ambiguous:
            raise self.fault(
                f"the token {text!r} is given as text, and several ids have this text",
                "Use a server that answers with ids: vLLM, SGLang or llama.cpp.",
            )
        return self._by_text[text]


class Together(Completions):
    """Together: ``echo`` with at most 20 ids."""

    kind = "together"
    most = 20

    def prompt(self, ids: list[int]) -> list[int] | str:
        """Together takes text alone; that it makes the same tokens of it is checked in each answer."""
        text = self.tokenizer.decode(ids)
        return text if isinstance(text, str) else "".join(text)


class Fireworks(Completions):
    """Fireworks: ``echo`` with at most 5 ids; the prompt's tokens come as ids, too."""

    kind = "fireworks"
    most = 5


KINDS: dict[str, type[Server]] = {kind.kind: kind for kind in (LlamaCpp, Vllm, Sglang, Together, Fireworks)}
"""Servers that score a given text."""
TEXT_ONLY = {
    "mistral": "Mistral's API scores chats alone, in a way that its documents do not describe",
    "chat": "a chat API gives text, and no probabilities of a given text",
}
"""Servers that do not, and why."""
HOSTS = {
    "api.together.xyz": "together",
    "api.together.ai": "together",
    "api.fireworks.ai": "fireworks",
    "api.mistral.ai": "mistral",
    "api.openai.com": "chat",
    "openrouter.ai": "chat",
    "api.anthropic.com": "chat",
    "generativelanguage.googleapis.com": "chat",
    "api.x.ai": "chat",
}
"""Kinds of known services by their host."""


def kind_at(client: Client) -> str:
    """The kind of server behind a client, by what it says of itself; ``chat`` where nothing else fits."""
    host = urlsplit(client.base_url).hostname or ""
    if host in HOSTS:
        return HOSTS[host]
    props = client.get("/props")
    if isinstance(props, dict) and ("default_generation_settings" in props or "build_info" in props):
        return "llamacpp"
    info = client.get("/get_model_info")
    if isinstance(info, dict) and "model_path" in info:
        return "sglang"
    models = client.get("/v1/models")
    listed = models.get("data") if isinstance(models, dict) else None
    owners = {item.get("owned_by") for item in listed if isinstance(item, dict)} if isinstance(listed, list) else set()
    if "llamacpp" in owners:
        return "llamacpp"
    if owners & {"vllm", "sglang"}:
        return "vllm" if "vllm" in owners else "sglang"
    return "chat"


def first_choice(server: Server, value: dict[str, Any]) -> dict[str, Any]:
    """The first of an answer's ``choices``."""
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise server.fault("it has no `choices`")
    choice: dict[str, Any] = choices[0]
    return choice


def _whole(value: Any) -> int | None:
    """An integer as an answer gives it, or None."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _real(value: Any) -> float | None:
    """A number as an answer gives it, or None where it is none: infinite, or beyond what float32 holds, too."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Compared with the largest, which is false for NaN.
    return float(value) if -LARGEST_REAL <= value <= LARGEST_REAL else None
