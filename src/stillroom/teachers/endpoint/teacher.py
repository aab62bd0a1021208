"""A teacher behind an endpoint, opened: its tokenizer is here, its weights are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.core import files
from stillroom.core.errors import TeacherError
from stillroom.corpus.sequences import Sequences
from stillroom.models.load import config_parameters, load_tokenizer, stated_licence, teacher_config
from stillroom.models.tokenizer import tokenizer_digest
from stillroom.recipe.routes import OWN
from stillroom.recipe.teacher import EndpointTeacher as EndpointConfig
from stillroom.teachers.endpoint.http import Client, Clock, Slots, SystemClock
from stillroom.teachers.endpoint.ledger import Ledger, Price
from stillroom.teachers.endpoint.probe import Fingerprint, Probe, probe
from stillroom.teachers.endpoint.servers import KINDS, TEXT_ONLY, Server, Unasked, kind_at
from stillroom.teachers.teacher import Capability, Vocabulary

if TYPE_CHECKING:
    import httpx2
    import torch
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class EndpointTeacher:
    """A :class:`stillroom.teachers.teacher.Teacher` that lists its most probable tokens.

    Attributes:
        config: The recipe's words.
        server: The server.
        tokenizer: The recipe's tokenizer.
        fingerprint: By which its model is known again; None before it was asked for anything.
    """

    config: EndpointConfig
    server: Server
    tokenizer: PreTrainedTokenizerFast
    fingerprint: Fingerprint | None = None

    @property
    def name(self) -> str:
        """The name that the endpoint is asked for."""
        return self.config.model

    @property
    def vocabulary(self) -> Vocabulary:
        """Its token ids."""
        return Vocabulary(self.server.size, self.tokenizer)

    @property
    def identity(self) -> Mapping[str, str]:
        """Digests of the fingerprint, which stands for weights that are not here, and of the tokenizer."""
        if self.fingerprint is None:
            raise TeacherError("The endpoint was not probed yet.", "Run `stillroom teacher probe`.")
        return {
            "teacher": files.digest_json(self.fingerprint.as_dict()),
            "tokenizer": tokenizer_digest(self.tokenizer),
        }

    @property
    def licence(self) -> str | None:
        """Its licence as the recipe states it, or else the model card beside the tokenizer."""
        return stated_licence(self.config)

    @property
    def dtype(self) -> str:
        """What it computes in is the server's claim alone."""
        return "stated"

    @property
    def capabilities(self) -> frozenset[Capability]:
        """Lists of the most probable tokens."""
        return frozenset(("top",))

    def record(self) -> dict[str, Any]:
        """What a run keeps of it. Where it is served is not part of that."""
        config = teacher_config(self.config)
        return {
            "name": self.name,
            "family": config.model_type,
            "digest": self.identity["teacher"],
            "tokenizer_digest": self.identity["tokenizer"],
            "licence": self.licence,
            "parameters": config_parameters(self.config),
            "bytes": None,
            "dtype": self.dtype,
            "served_by": self.config.service or "a server of one's own",
            "claim": "the endpoint's: recognised by its answers to a fixed text, not by its weights",
        }

    def batch_tokens(self, length: int) -> int:
        """One sequence is one request."""
        return length

    def score(
        self,
        sequences: Sequences,  # noqa: ARG002
        indices: Sequence[int],  # noqa: ARG002
        temperature: float = 1.0,  # noqa: ARG002
    ) -> Iterator[tuple[int, Iterator[torch.Tensor]]]:
        """An endpoint lists some tokens; it gives no whole distributions."""
        raise TeacherError(
            f"The teacher {self.name} is behind an endpoint and gives no whole distributions.",
            "Capture with `codec: {kind: observed}`.",
        )

    def probed(self) -> tuple[EndpointTeacher, Probe]:
        """The same teacher with the fingerprint of what answers now, and what the probe found. Errors as in :func:`probe`."""
        found = probe(self.server)
        return replace(self, fingerprint=found.fingerprint), found

    def close(self) -> None:
        """End connections."""
        self.server.client.close()


def open_endpoint(
    config: EndpointConfig,
    ledger: Path | None = None,
    *,
    clock: Clock | None = None,
    transport: httpx2.BaseTransport | None = None,
    jitter: Callable[[], float] | None = None,
    top: int | None = None,
    earlier: Sequence[Path] = (),
    known: Fingerprint | None = None,
) -> EndpointTeacher:
    """Open an endpoint: its tokenizer is loaded, and the kind of server is found out. Nothing is paid for.

    Args:
        config: The recipe's section ``teacher``.
        ledger: The run's file of what was spent.
        clock: Time.
        transport: Of HTTP, for tests.
        jitter: Random numbers from 0 to 1 for waits, for tests.
        top: Ids to ask for per position; None: ``config.top``.
        earlier: The run's files of what was spent under names that its recipe does not have any more.
        known: The fingerprint of a cache that has all that is wanted: nothing is sent, and the server need not be there.

    Raises:
        TeacherError: The server cannot be reached, or cannot score a text; or the tokenizer cannot be loaded.
    """
    import torch  # noqa: F401 - a tokenizer's first use imports it; here it is no surprise in a thread

    tokenizer = load_tokenizer(config)
    size = max(len(tokenizer), int(getattr(teacher_config(config), "vocab_size", 0) or 0))
    price = Price(config.price.input, config.price.output, config.price.cap)
    client = Client(
        base_url=config.base_url,
        key_env=config.key_env,
        ledger=Ledger(ledger, price, earlier),
        timeout=config.timeout_seconds,
        attempts=config.attempts,
        slots=Slots(config.concurrency),
        clock=clock or SystemClock(),
        transport=transport,
        **({"jitter": jitter} if jitter is not None else {}),
    )
    if known is not None:
        return EndpointTeacher(config, Unasked(client, config.model, tokenizer, size, config.top), tokenizer, known)
    kind = kind_at(client) if config.server == "auto" else config.server
    if kind in TEXT_ONLY:
        client.close()
        raise TeacherError(
            f"{config.base_url}: {TEXT_ONLY[kind]}, so that there is no signal to capture.",
            "Serve the model with llama.cpp, vLLM or SGLang; or have text written by it and train on that as a source with "
            "`generated_by`.",
        )
    asked = config.top if top is None else top
    try:
        require_most(kind, asked)
    except TeacherError:
        client.close()
        raise
    cls = KINDS[kind]
    return EndpointTeacher(config, cls(client, config.model, tokenizer, size, asked), tokenizer)


def require_most(kind: str, asked: int, key: str = OWN) -> None:
    """Refuse to ask for more ids per position than a kind of server lists.

    Args:
        kind: Of server, such as ``fireworks``.
        asked: Ids.
        key: What the recipe calls the teacher.

    Raises:
        TeacherError: It lists fewer.
    """
    most = KINDS[kind].most
    if most is not None and asked > most:
        raise TeacherError(
            f"A server of the kind `{kind}` lists at most {most} ids per position, and the recipe asks for {asked}.",
            f"Set `{key}.top: {most}`, and `capture: {{codec: {{kind: observed, k: {most}}}}}`.",
        )
