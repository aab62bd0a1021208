"""Errors as clients get them, in the words of the OpenAI API.

A client's mistake is 4xx; what this machine cannot do now is 503, and says so.
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse

from stillroom.core.errors import StillroomError, SwitchedOff, UsageError, VerificationFailed
from stillroom.core.strict_json import NotStrict
from stillroom.runtime.transport import EngineRefused
from stillroom.serving.answers import ContextFull
from stillroom.serving.grammars import UnsupportedSchema
from stillroom.serving.pool import NoModel, NoRoom
from stillroom.serving.queues import QueueFull
from stillroom.serving.sessions import NoSession, SessionDamaged


class Refused(UsageError):
    """What a client is to be told of its request, as the process that read it has it.

    Attributes:
        status: The status of HTTP.
        code: The error's code.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code = status, code
        super().__init__(message)


_KNOWN: list[tuple[type[Exception], int, str]] = [
    (SwitchedOff, 503, "switched_off"),
    (VerificationFailed, 503, "verification_failed"),
    (QueueFull, 429, "queue_full"),
    (NoRoom, 503, "no_room"),
    (NoModel, 404, "model_not_found"),
    (NoSession, 404, "session_not_found"),
    (SessionDamaged, 409, "session_damaged"),
    (ContextFull, 400, "context_length_exceeded"),
    (UnsupportedSchema, 400, "unsupported_schema"),
    (TimeoutError, 503, "timeout"),
]


def problem(status: int, code: str, message: str, close: bool = False) -> JSONResponse:
    """An error's answer."""
    headers = {"Retry-After": "1"} if status == 429 or code == "no_room" else {}
    if close:
        headers["Connection"] = "close"
    return JSONResponse(body(status, code, message), status, headers)


def body(status: int, code: str, message: str) -> dict[str, Any]:
    """An error's words."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": code, "param": None}}


_SEVERAL = {"CompletionRequest": ("prompt", 256), "EmbeddingRequest": ("input", 2048)}
"""Requests of one text or several: the key that has them, and how many it may have."""


def explain(error: BaseException) -> tuple[int, str, str]:
    """Status, code and message of whatever was raised."""
    if isinstance(error, Refused):
        return error.status, error.code, str(error)
    for kind, status, code in _KNOWN:
        if isinstance(error, kind):
            return status, code, str(error) or "It took too long."
    if isinstance(error, EngineRefused):
        # The engine's own faults are this machine's; everything else was the client's.
        return (400, "invalid_request", str(error)) if error.status < 500 else (503, "engine_failed", str(error))
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # Inside a choice of types pydantic names its own parts, which say nothing to a client.
        where = ".".join(str(part) for part in first["loc"] if "[" not in str(part) and str(part) != "")[:200]
        key, most = _SEVERAL.get(error.title, ("", 0))
        if first["loc"][:1] == (key,) and len(first["loc"]) > 1:
            said = f"{key}: a text, a list of ids of tokens, or a list of up to {most:,} of either"
            return 400, "invalid_request", said
        if first["loc"][-2:-1] == ("content",) and first["type"] == "string_type":
            return (
                400,
                "invalid_request",
                f"{where}: a text, or a list of parts of the type text; nothing else is read here",
            )
        said = str(first["msg"]).removeprefix("Value error, ")
        return 400, "invalid_request", f"{where}: {said}" if where else said
    if isinstance(error, NotStrict | UnicodeError):
        return 400, "invalid_request", f"The body is not JSON: {str(error)[:200]}"
    if isinstance(error, ValueError):
        return 400, "invalid_request", str(error)[:200]
    if isinstance(error, StillroomError):
        return 503, "engine_failed", str(error)
    logging.getLogger("stillroom.serving").exception("a request failed", exc_info=error)
    return 503, "internal_error", "The server could not answer this request."


def answer(error: BaseException) -> JSONResponse:
    """The answer to whatever was raised."""
    return problem(*explain(error))
