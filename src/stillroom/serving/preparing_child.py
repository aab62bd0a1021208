"""The process that prepares requests: it reads long bodies and compiles schemas, so that the server's interpreter is not held.

Run by :mod:`.preparing`. One job at a time comes on standard input and its result goes out on standard output, each with its
length before it. It opens nothing, connects to nothing and starts nothing; a job that takes too much CPU time ends it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llguidance
import llguidance.gbnf_to_lark
import pydantic
from pydantic import BaseModel

from stillroom.core.errors import UsageError
from stillroom.core.memory import release_memory
from stillroom.core.sandbox.confine import confine, standard_library
from stillroom.core.sandbox.policies import NO_EFFECTS
from stillroom.core.strict_json import read_strict
from stillroom.runtime.facts import GgufFacts
from stillroom.serving import answers, grammars, handed, ollama, problems, requests, responses

CPU_SECONDS = 3.0
"""Of one job: of 5,000 schemas of libraries the slowest takes a tenth of a second, and the longest body that is taken about
one."""
MEMORY_BYTES = 1 << 30
LARGE = 1 << 18
"""Bytes of a job, after which memory is given back to the system."""
KINDS: dict[str, type[BaseModel]] = {
    kind.__name__: kind
    for kind in (
        requests.ChatRequest, requests.CompletionRequest, requests.EmbeddingRequest, requests.NewSession,
        requests.SessionName, requests.SwitchFeature, responses.ResponsesRequest, ollama.Asked, ollama.OllamaChat,
        ollama.OllamaGenerate,
    )
}  # fmt: skip
"""What a body can be read as."""


def read_body(kind: str, data: bytes) -> BaseModel:
    """A body as a request.

    Raises:
        ValueError: It is not JSON, or no such request.
    """
    # Clients write a key twice without meaning harm; the last one counts, as in their own readers.
    value = read_strict(data, key_twice=True)
    if not isinstance(value, dict):
        raise ValueError("an object is expected")
    return KINDS[kind].model_validate(value)


def _read_long(kind: str, data: bytes) -> BaseModel:
    """The same of a long body. What the server gets of it has no more parts than any request that is taken.

    Raises:
        ValueError: It is not JSON, or no such request.
        UnsupportedSchema: A schema in it is longer than any that is taken.
    """
    found = read_body(kind, data)
    if isinstance(found, ollama.OllamaRequest):
        grammars.require_short(found.format)
    if isinstance(found, responses.ResponsesRequest) or (
        isinstance(found, ollama.OllamaChat) and not found.asks_nothing
    ):
        _require_bounded(found.chat())
    _require_bounded(found)
    return found


def _require_bounded(found: BaseModel) -> None:
    if isinstance(found, requests.Schemas):
        for form in found.forms():
            grammars.require_short(form.value)
    if isinstance(found, requests.ChatRequest):
        for tool in found.tools or []:
            grammars.require_short(tool.function.parameters)


def _read_prompts(asked: requests.CompletionRequest, facts: GgufFacts, owner: str) -> list[answers.Question]:
    return [answers.completion_question(asked, prompt, facts, owner) for prompt in asked.prompts()]


JOBS: dict[str, Callable[..., Any]] = {
    "read": _read_long,
    "chat": lambda asked: asked.chat(),
    "ask": answers.chat_question,
    "complete": _read_prompts,
}
"""What this process does."""


def done(job: str, arguments: list[Any]) -> tuple[Any, ...]:
    """A job's result, or what its client is to be told."""
    try:
        return ("done", JOBS[job](*arguments))
    except MemoryError:
        return ("refused", 400, "invalid_request", "The request takes too much memory to be read.")
    except Exception as error:
        status, code, message = problems.explain(error)
        if isinstance(error, UsageError) and code == "engine_failed":
            status, code = 400, "invalid_request"
        return ("refused", status, code, message)


def _answer(job: str, arguments: list[Any]) -> bytes:
    """A job's result as it is handed over."""
    try:
        return handed.written(done(job, arguments))
    except RecursionError:
        return handed.written(("refused", 400, "invalid_request", "The request is too deep to be read."))


def _within(seconds: float) -> None:
    """End this process after some seconds of CPU time, whatever it is in; nothing ends it at zero."""
    import signal

    with contextlib.suppress(AttributeError, OSError):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _read(count: int) -> bytes | None:
    data = sys.stdin.buffer.read(count)
    return data if len(data) == count else None


def main() -> None:
    """Do what is asked until the parent is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        # The loop that answers comes first, and so does the engine.
        os.nice(10)
    # What is loaded late would be refused: so everything has been used once.
    grammars.json_grammar({"type": "object", "properties": {"a": {"type": "string", "pattern": "^a$"}}})
    grammars.client_grammar('root ::= "a"\n')
    with contextlib.suppress(grammars.UnsupportedSchema):
        grammars.client_grammar("root ::= (")
    done("read", ["ChatRequest", b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}'])
    packages = [Path(str(module.__file__)).parent for module in (llguidance, pydantic)]
    confine([*standard_library(), *packages], None, MEMORY_BYTES, 16, policy=NO_EFFECTS, namespace=False)
    # A body of a million lists is no reason to look through all of them for cycles, again and again.
    gc.collect()
    gc.freeze()
    gc.disable()
    while (head := _read(4)) is not None and (data := _read(int.from_bytes(head, "big"))) is not None:
        _within(CPU_SECONDS)
        job, *arguments = handed.read(data)
        written = _answer(job, arguments)
        del job, arguments
        _within(0)
        sys.stdout.buffer.write(len(written).to_bytes(4, "big") + written)
        sys.stdout.buffer.flush()
        if len(data) + len(written) > LARGE:
            del data, written
            gc.collect()
            release_memory()


if __name__ == "__main__":
    main()
