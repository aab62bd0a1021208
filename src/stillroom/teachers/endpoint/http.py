"""Requests to an endpoint: retries, limits, the spend cap, and a key that appears nowhere."""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx2

from stillroom.core.errors import TeacherError
from stillroom.core.version import tool_version
from stillroom.teachers.endpoint.deadline import BoundedTransport, Deadline
from stillroom.teachers.endpoint.ledger import Ledger

RETRIED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
"""Statuses after which the same request may succeed."""
FREE = frozenset((408, 409, 425, 429, 503, 529))
"""Those of them for which no server charges."""
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
"""Seconds before the second attempt, and the most before any; doubled each time, with jitter."""
LONGEST_ASKED = 120.0
"""Seconds: a server that asks for a longer pause is not waited for."""
LARGEST = 512 << 20
"""Bytes of an answer."""
SHOWN = 200
"""Characters of a server's own words that an error shows."""
UNITS = {"retry-after-ms": 0.001, "retry-after": 1.0}


class Clock(Protocol):
    """Time, so that tests need none."""

    def now(self) -> float:
        """Seconds since 1970."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The clock of this machine."""

    def now(self) -> float:
        """See :class:`Clock`."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """See :class:`Clock`."""
        time.sleep(seconds)


class Slots:
    """How many requests may be under way: halved when the server says it is too much, and slowly up again.

    Args:
        most: The recipe's ``concurrency``.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self._under_way = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for a slot and hold it."""
        with self._changed:
            while self._under_way >= max(1, int(self.limit)):
                self._changed.wait()
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def went_well(self) -> None:
        """A request succeeded: one slot more after as many as there are."""
        with self._changed:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
            self._changed.notify_all()

    def too_much(self) -> None:
        """The server asked for fewer."""
        with self._changed:
            self.limit = max(1.0, self.limit / 2)


def key_of(name: str | None) -> str | None:
    """The key in an environment variable; None where the recipe names no variable.

    Raises:
        TeacherError: The variable is not set, or its value cannot be a key.
    """
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise TeacherError(
            f"The environment variable `{name}`, which has the endpoint's key, is not set.",
            f"Set it in the shell that gives the command: export {name}=…",
        )
    if not (key.isascii() and key.isprintable()):
        raise TeacherError(f"The environment variable `{name}` has characters that no key has.", "Set it again.")
    return key


@dataclass
class Client:
    """Talks to one server.

    Attributes:
        base_url: Without a slash at its end.
        key_env: Environment variable with the key; it is read for each request and kept nowhere.
        ledger: Gate and record of every request that costs tokens.
        timeout: Seconds for an answer, from connecting to its last byte.
        attempts: Of one request at most.
        slots: Limit of requests under way.
        clock: Time.
    """

    base_url: str
    key_env: str | None
    ledger: Ledger
    timeout: float = 120.0
    attempts: int = 6
    slots: Slots = field(default_factory=lambda: Slots(8))
    clock: Clock = field(default_factory=SystemClock)
    transport: httpx2.BaseTransport | None = None
    jitter: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        # No redirects: a key would go where no one said it should. Nothing from the environment: a netrc file is a key, too.
        self._deadline = Deadline()
        self._client = httpx2.Client(
            follow_redirects=False,
            trust_env=False,
            timeout=self.timeout,
            transport=self.transport or BoundedTransport(self._deadline),
        )

    def close(self) -> None:
        """End connections."""
        self._client.close()

    def get(self, path: str) -> Any:
        """The JSON at a path that costs nothing; None where there is no such path or it is not JSON.

        Raises:
            TeacherError: As in :meth:`post`, where the server cannot be reached or redirects.
        """
        status, data = self._send("GET", path, None)
        if status != 200:
            return None
        try:
            return _parsed(data)
        except ValueError:
            return None

    def post(self, path: str, body: dict[str, Any], tokens_in: int, tokens_out: int, what: str) -> Any:
        """The JSON answer of a request that may cost tokens.

        Args:
            path: Behind the base URL.
            body: As JSON.
            tokens_in: Prompt tokens.
            tokens_out: Tokens generated at most.
            what: What is asked for, for the record of spending.

        Raises:
            TeacherError: It failed as often as was allowed, or in a way that will not pass; says how. Or the cap is reached.
        """
        problem = ""
        for attempt in range(self.attempts):
            with self.slots.taken():
                number = self.ledger.reserve(tokens_in, tokens_out, what) if tokens_in + tokens_out else None
                began = self.clock.now()
                ended = False
                try:
                    status, data, headers = self._exchange("POST", path, body)
                    seconds = self.clock.now() - began
                    if status == 200:
                        value = self._value(data)
                        used = _usage(value, tokens_in, tokens_out)
                        # Whatever booking comes to: a request is booked once.
                        ended = True
                        if number is not None:
                            self.ledger.book(number, "200", *used, seconds)
                            self._require_no_error(value, path)
                        if not _failed(value):
                            self.slots.went_well()
                            return value
                        raise _Broken("the model failed behind the server (`finish_reason: error`)")
                    if number is not None and (status in FREE or status < 500):
                        ended = True
                        self.ledger.book(number, str(status), 0, 0, seconds)
                    problem, wait = self._refused(status, data, headers, path)
                    if status in (429, 503, 529):
                        self.slots.too_much()
                except _Broken as error:
                    problem, wait = str(error), None
                finally:
                    if number is not None and not ended:
                        self.ledger.fail(number)
            if attempt + 1 < self.attempts:
                self.clock.sleep(self._wait(attempt, wait))
        raise TeacherError(
            f"{self.base_url}{path}: {problem}, {self.attempts} times in a row.",
            "Everything that was received is kept: give the same command again later, or lower `teacher.concurrency`.",
        )

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds until the next attempt: what the server asked for, or a random part of a wait that doubles."""
        if asked is not None:
            return asked
        return float(self.jitter() * min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt))

    def _refused(self, status: int, data: bytes, headers: httpx2.Headers, path: str) -> tuple[str, float | None]:
        """Why a request was refused, and how long the server wants to be left alone.

        Raises:
            TeacherError: It will be refused again.
        """
        words = self._words(data)
        if status not in RETRIED and status < 500:
            todo = {
                401: f"Set the environment variable `{self.key_env}` to a valid key."
                if self.key_env
                else "Name the environment variable with the key as `teacher.key_env`.",
                403: "The key may not use this model.",
                404: "Check `teacher.base_url` and `teacher.model`.",
            }.get(status, "Run `stillroom teacher probe` on the endpoint.")
            raise Refused(status, f"{self.base_url}{path}: the server refused with status {status}: {words}", todo)
        meaning = {429: "too many requests (status 429)"}.get(status, f"the server failed with status {status}")
        wait = self._asked_wait(headers)
        if wait is not None and wait > LONGEST_ASKED:
            raise TeacherError(
                f"{self.base_url}{path}: {meaning}, and the server asks for a pause of {wait:,.0f} seconds.",
                "Everything that was received is kept: give the same command again after that.",
            )
        return f"{meaning}: {words}", wait

    def _asked_wait(self, headers: httpx2.Headers) -> float | None:
        for name, unit in UNITS.items():
            value = headers.get(name)
            if value is None:
                continue
            try:
                return max(0.0, float(value) * unit)
            except ValueError:
                with contextlib.suppress(ValueError, TypeError):
                    return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - self.clock.now())
        return None

    def _send(self, method: str, path: str, body: Any) -> tuple[int, bytes]:
        """A request that costs nothing, tried more than once where the connection breaks or the server is not ready yet."""
        problem = ""
        for attempt in range(self.attempts):
            wait = None
            try:
                status, data, headers = self._exchange(method, path, body)
                if status not in RETRIED:
                    return status, data
                problem, wait = self._refused(status, data, headers, path)
            except _Broken as error:
                problem = str(error)
            if attempt + 1 < self.attempts:
                self.clock.sleep(self._wait(attempt, wait))
        raise TeacherError(f"{self.base_url}{path}: {problem}.", "Check `teacher.base_url`, and that the server runs.")

    def _exchange(self, method: str, path: str, body: Any) -> tuple[int, bytes, httpx2.Headers]:
        """One request and its whole answer.

        Raises:
            _Broken: It did not come, or not whole, in words without the key.
            TeacherError: A redirect.
        """
        headers = {"User-Agent": f"stillroom/{tool_version()}", "Accept": "application/json"}
        key = key_of(self.key_env)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        try:
            with (
                self._deadline.within(self.timeout),
                self._client.stream(method, self.base_url + path, content=content, headers=headers) as response,
            ):
                if response.is_redirect or 300 <= response.status_code < 400:
                    raise TeacherError(
                        f"{self.base_url}{path}: the server redirects to another address, which is refused: the key and the "
                        "text would go there.",
                        "Give the final address as `teacher.base_url`.",
                    )
                data = bytearray()
                for part in response.iter_bytes():
                    data += part
                    if len(data) > LARGEST:
                        raise _Broken(f"the answer is larger than {LARGEST >> 20} MiB")
                return response.status_code, bytes(data), response.headers
        except httpx2.TimeoutException:
            failed: Exception = _Broken(f"the server is slow: no whole answer within {self.timeout:g} seconds")
        except (httpx2.RemoteProtocolError, httpx2.ReadError):
            failed = _Broken("the connection broke before the answer was whole")
        except httpx2.DecodingError:
            failed = _Broken("the answer's compression is damaged")
        except httpx2.HTTPError as error:
            failed = _Broken(f"the server cannot be reached ({type(error).__name__})")
        except httpx2.InvalidURL:
            failed = TeacherError(f"{self.base_url}{path} is not an address.", "Check `teacher.base_url`.")
        # Raised here, so that it does not carry httpx's error as its context: that holds the request, and so the key.
        raise failed

    def _value(self, data: bytes) -> Any:
        """The answer's JSON.

        Raises:
            TeacherError: It is something else.
        """
        garbage = False
        try:
            value = _parsed(data)
        except ValueError:
            garbage = True
        if garbage:
            # Raised here, so that it does not carry the parser's error as its context: that holds the answer as it came,
            # and a server may send the key back.
            raise TeacherError(
                f"{self.base_url}: the answer is not JSON: {self._words(data)}",
                "Check `teacher.base_url`; everything that was received before is kept.",
            )
        if not isinstance(value, dict):
            raise TeacherError(f"{self.base_url}: the answer is not a JSON object.", "Check `teacher.base_url`.")
        return value

    def _require_no_error(self, value: dict[str, Any], path: str) -> None:
        """Refuse an answer with status 200 that is an error all the same.

        Raises:
            TeacherError: It is one; shows the server's words.
        """
        error = value.get("error")
        if not error or "choices" in value:
            return
        said = error.get("message") if isinstance(error, dict) else error
        words = said if isinstance(said, str) and said else json.dumps(error)
        raise TeacherError(
            f"{self.base_url}{path}: the server answered with an error: {self.without_key(words[: 1 << 16])[:SHOWN]}",
            "Everything that was received is kept: give the same command again later.",
        )

    def _words(self, data: bytes) -> str:
        """What a server says, short, on one line, and without the key."""
        # The key first: cutting could leave a half of it.
        return self.without_key(data[: 1 << 16].decode("utf-8", "replace"))[:SHOWN] or "(nothing)"

    def without_key(self, text: str) -> str:
        """A text that may hold something of a server's answer, on one line, and without the key."""
        key = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        if key:
            text = text.replace(key, "[key]")
        text = "".join(letter if letter.isprintable() else " " for letter in text)
        return " ".join(text.split())


class Refused(TeacherError):
    """The server refused in a way that will not pass.

    Args:
        status: Of HTTP.
        what: What happened.
        todo: What can be done.
    """

    def __init__(self, status: int, what: str, todo: str = "") -> None:
        self.status = status
        super().__init__(what, todo)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Travel whole between processes."""
        return (type(self), (self.status, self.what, self.todo))


class _Broken(Exception):
    """No whole answer."""


def _parsed(data: bytes) -> Any:
    """JSON without constants that are no numbers. Raises ValueError."""

    def no_number(text: str) -> Any:
        raise ValueError(text)

    try:
        return json.loads(data, parse_constant=no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _failed(value: dict[str, Any]) -> bool:
    """Whether an answer is none although its status is 200: what a gateway says when the model behind it failed."""
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return isinstance(first, dict) and first.get("finish_reason") == "error"


def _usage(value: Any, tokens_in: int, tokens_out: int) -> tuple[int, int]:
    """Tokens that an answer says it cost; what was reserved where it says nothing, or nothing that can be."""
    usage = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(usage, dict):
        return tokens_in, tokens_out
    found = []
    for name, reserved in (("prompt_tokens", tokens_in), ("completion_tokens", tokens_out)):
        said = usage.get(name)
        found.append(said if isinstance(said, int) and not isinstance(said, bool) and said >= 0 else reserved)
    return found[0], found[1]
