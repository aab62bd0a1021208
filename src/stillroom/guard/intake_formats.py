"""The formats of request logs, each read into one row.

A format is a function from a JSON object (or a line of an access log) to the fields of :class:`Row` that it has. Whatever a log
does not say stays None; nothing is guessed.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass
class Row:
    """One request, before its values are made digests. None: the log does not say.

    Attributes:
        time_us: When it came, in microseconds since 1970 (UTC).
        account: Who is billed, or the nearest thing that the log names.
        system: Its system message.
        user: Its last user message.
        turns: User messages in it.
    """

    time_us: int | None = None
    account: str | None = None
    request: str | None = None
    org: str | None = None
    key: str | None = None
    payment: str | None = None
    device: str | None = None
    ip: str | None = None
    asn: str | None = None
    country: str | None = None
    ua: str | None = None
    end_user: str | None = None
    model: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    choices: int | None = None
    temperature: float | None = None
    logprobs: bool | None = None
    tools: bool | None = None
    stream: bool | None = None
    seeded: bool | None = None
    turns: int | None = None
    latency_ms: int | None = None
    status: int | None = None
    system: str | None = None
    user: str | None = None


def text_of(value: object) -> str | None:
    """A string from a scalar; None for nothing, an object, an array or an empty string."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int | float) else None


def number_of(value: object) -> int | None:
    """A finite number that is not negative, without its fraction; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value[:40])
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    return int(value)


def temperature_of(value: object) -> float | None:
    """A temperature from 0 to 100; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        return None
    return float(value)


def milliseconds_of(began_us: int | None, ended_us: int | None) -> int | None:
    """The time between two moments; None where one is missing or they are in the wrong order."""
    return None if began_us is None or ended_us is None else number_of((ended_us - began_us) // 1000)


def flag_of(value: object) -> bool | None:
    """Whether something was asked for; None where the log has no such key."""
    return None if value is None else bool(value)


EARLIEST, LATEST = 946_684_800, 4_102_444_800
"""Seconds of 2000 and 2100: a time outside is a mistake of the log."""


_NUMBER = re.compile(r"\d+(?:\.\d*)?(?:[eE]\+?\d{1,2})?", re.ASCII)


def time_of(value: object) -> int | None:
    """Microseconds since 1970 of a number (seconds, milliseconds, microseconds or nanoseconds by its size) or an ISO date.

    Digits in a string are a number, too, where that is a time; a date without a zone is read as UTC.
    """
    if isinstance(value, str):
        text = value.strip()[:64]
        if _NUMBER.fullmatch(text) and (counted := time_of(float(text))) is not None:
            return counted
        # As databases write it: 2026-01-31 12:00:00 UTC.
        text = re.sub(r" ?(?:UTC|GMT)$", "+00:00", text)
        try:
            found = datetime.datetime.fromisoformat(text)
        except ValueError:
            try:
                value = float(text)
            except ValueError:
                return None
        else:
            if found.tzinfo is None:
                found = found.replace(tzinfo=datetime.UTC)
            value = found.timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    if not math.isfinite(seconds):
        return None
    for _ in range(3):
        if seconds > LATEST:
            seconds /= 1000
    return round(seconds * 1e6) if EARLIEST <= seconds <= LATEST else None


def _object(value: object) -> Object:
    return value if isinstance(value, dict) else {}


def _first(*values: object) -> Any:
    return next((value for value in values if value is not None and value != ""), None)


def _content(value: object) -> str:
    """The text of a message's content: a string, or the text parts of a list."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        parts = (_object(part) for part in value)
        return " ".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    return ""


def _messages(row: Row, messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        return
    turns = 0
    for message in map(_object, messages):
        # OpenTelemetry has `parts` with `content` where others have `content`.
        content = _content(message.get("content"))
        if not content and isinstance(message.get("parts"), list):
            content = " ".join(_content(_object(part).get("content")) for part in message["parts"])
        if message.get("role") in ("system", "developer"):
            row.system = content or row.system
        elif message.get("role") == "user":
            turns += 1
            row.user = content or row.user
    row.turns = turns


def _asked(row: Row, body: Object) -> None:
    """The parameters of an OpenAI-style request."""
    row.model = text_of(body.get("model")) or row.model
    row.choices = number_of(body.get("n"))
    row.temperature = temperature_of(body.get("temperature"))
    row.logprobs = flag_of(_first(body.get("logprobs"), body.get("top_logprobs")))
    row.tools = flag_of(body.get("tools"))
    row.stream = flag_of(body.get("stream"))
    row.seeded = "seed" in body if body else None
    row.end_user = text_of(_first(body.get("user"), body.get("safety_identifier")))
    _messages(row, body.get("messages") if body.get("messages") is not None else body.get("input"))
    prompt = body.get("prompt", body.get("input"))
    if row.user is None and isinstance(prompt, str):
        row.user, row.turns = prompt, 1


def _used(row: Row, usage: Object) -> None:
    row.tokens_in = number_of(_first(usage.get("prompt_tokens"), usage.get("input_tokens")))
    row.tokens_out = number_of(_first(usage.get("completion_tokens"), usage.get("output_tokens")))


def _around(row: Row, record: Object) -> None:
    """What proxies write beside the request, under the names that they commonly have."""
    row.account = text_of(_first(record.get("account"), record.get("account_id"), record.get("user_id")))
    row.org = text_of(_first(record.get("org"), record.get("organization"), record.get("organization_id")))
    row.key = text_of(_first(record.get("api_key"), record.get("key"), record.get("key_hash")))
    row.payment = text_of(_first(record.get("payment"), record.get("payment_id"), record.get("payment_fingerprint")))
    row.device = text_of(_first(record.get("device"), record.get("device_id")))
    row.ip = text_of(_first(record.get("ip"), record.get("client_ip"), record.get("remote_addr")))
    row.asn = text_of(record.get("asn"))
    row.country = text_of(record.get("country"))
    row.ua = text_of(_first(record.get("user_agent"), record.get("ua")))
    row.end_user = row.end_user or text_of(record.get("end_user"))
    row.latency_ms = number_of(record.get("latency_ms"))
    row.status = number_of(_first(record.get("status"), record.get("status_code")))
    row.request = text_of(_first(record.get("request_id"), record.get("custom_id"), record.get("id")))
    row.time_us = time_of(
        _first(
            record.get("time"),
            record.get("timestamp"),
            record.get("ts"),
            record.get("created"),
            record.get("created_at"),
        )
    )


def openai(record: Object) -> Row:
    """OpenAI-style JSONL: a request beside its response, as batches and proxies write them."""
    row = Row()
    response = _object(record.get("response"))
    answer = _object(response.get("body")) or response
    body = _object(_first(record.get("body"), record.get("request")))
    _asked(row, body or record)
    _around(row, record)
    _used(row, _object(answer.get("usage")) or _object(record.get("usage")))
    row.time_us = row.time_us if row.time_us is not None else time_of(answer.get("created"))
    row.status = row.status if row.status is not None else number_of(response.get("status_code"))
    row.model = row.model or text_of(answer.get("model"))
    return row


def litellm(record: Object) -> Row:
    """A row of LiteLLM's `LiteLLM_SpendLogs`."""
    row = Row()
    metadata = _object(record.get("metadata"))
    asked = _object(record.get("proxy_server_request")) or {}
    _asked(row, _object(asked.get("body")) or asked)
    if row.user is None:
        _messages(row, record.get("messages"))
    row.time_us = time_of(record.get("startTime"))
    row.latency_ms = milliseconds_of(row.time_us, time_of(record.get("endTime")))
    row.key = text_of(record.get("api_key"))
    # `user` is the proxy's own user of the key; `end_user` is what the customer says.
    row.account = text_of(_first(record.get("user"), record.get("team_id"), record.get("api_key")))
    row.org = text_of(_first(record.get("organization_id"), record.get("team_id")))
    row.end_user = text_of(record.get("end_user"))
    row.ip = text_of(record.get("requester_ip_address"))
    row.ua = text_of(_first(metadata.get("user_agent"), record.get("user_agent")))
    row.model = text_of(_first(record.get("model"), record.get("model_group")))
    row.request = text_of(record.get("request_id"))
    row.tokens_in = number_of(record.get("prompt_tokens"))
    row.tokens_out = number_of(record.get("completion_tokens"))
    return row


def _attributes(value: object) -> Object:
    """Attributes of OpenTelemetry: an object, or OTLP's list of keys with typed values."""
    if isinstance(value, dict):
        return value
    found: Object = {}
    for pair in value if isinstance(value, list) else ():
        pair = _object(pair)
        typed = _object(pair.get("value"))
        if isinstance(pair.get("key"), str) and typed:
            found[pair["key"]] = next(iter(typed.values()))
    return found


def otel(record: Object) -> Row:
    """A span of OpenTelemetry with the `gen_ai` attributes; the names of older exporters are read too."""
    row = Row()
    have = _attributes(record.get("attributes", record))
    resource = _attributes(_object(record.get("resource")).get("attributes"))
    request = "gen_ai.request."
    row.model = text_of(_first(have.get(request + "model"), have.get("gen_ai.response.model")))
    row.temperature = temperature_of(have.get(request + "temperature"))
    row.choices = number_of(have.get(request + "choice.count"))
    row.seeded = (request + "seed") in have
    row.tokens_in = number_of(_first(have.get("gen_ai.usage.input_tokens"), have.get("gen_ai.usage.prompt_tokens")))
    row.tokens_out = number_of(
        _first(have.get("gen_ai.usage.output_tokens"), have.get("gen_ai.usage.completion_tokens"))
    )
    row.request = text_of(_first(have.get("gen_ai.response.id"), record.get("spanId"), record.get("span_id")))
    row.ip = text_of(_first(have.get("client.address"), have.get("net.peer.ip")))
    row.ua = text_of(_first(have.get("user_agent.original"), have.get("http.user_agent")))
    row.end_user = text_of(have.get("enduser.pseudo.id"))
    row.account = text_of(
        _first(have.get("enduser.id"), have.get("user.id"), have.get("tenant.id"), resource.get("tenant.id"))
    )
    row.org = text_of(have.get("organization.id"))
    row.status = number_of(have.get("http.response.status_code"))
    row.time_us = time_of(
        _first(
            record.get("startTimeUnixNano"),
            record.get("start_time"),
            record.get("start_time_unix_nano"),
            record.get("time"),
        )
    )
    ended = time_of(_first(record.get("endTimeUnixNano"), record.get("end_time"), record.get("end_time_unix_nano")))
    row.latency_ms = milliseconds_of(row.time_us, ended)
    messages = have.get("gen_ai.input.messages")
    if isinstance(messages, str):
        from stillroom.core.strict_json import NotStrict, read_strict

        try:
            messages = read_strict(messages.encode("utf-8", "replace"))
        except NotStrict:
            messages = None
    _messages(row, messages)
    return row


def stillroom(record: Object) -> Row:
    """A line of `stillroom serve --request-log`."""
    row = Row()
    _asked(row, record)
    _around(row, record)
    _used(row, record)
    row.account = row.account or row.key
    row.turns = number_of(record.get("turns"))
    row.seeded = flag_of(record.get("seeded"))
    return row


# Loggers escape quotes in what a client sends (`\\"`, `\\x22`), so that a bare one ends the field; possessive: no backtracking.
_INSIDE = r'(?:[^"\\]++|\\.)*+'
_ACCESS = re.compile(
    rf'(?P<ip>[0-9A-Fa-f.:]{{2,45}}) \S++ (?P<none>""(?= \[))?+(?P<head>{_INSIDE})"{_INSIDE}" (?P<status>\d{{3}}) \S++'
    rf'(?: "{_INSIDE}" "(?P<ua>{_INSIDE})")?+(?P<rest>.*)'
)
_HEAD = re.compile(r"(?P<user>.*) \[(?P<time>[^\[\]]{10,40})\] ")
"""A line of the combined format. A name of basic authentication is the client's too, and may hold blanks and brackets."""
_BEHIND = re.compile(
    rf'\b(?:key=(?:"(?P<quoted>{_INSIDE})"|(?P<key>[^\s",;()\[\]{{}}|]+))|rt="(?P<quoted_seconds>{_INSIDE})"|rt=(?P<seconds>\d+(?:\.\d+)?))'
    rf'|"{_INSIDE}"?|\w+|\\.|[^\w"\\]+|\\'
)
"""What is behind the combined format, one part after another. A field in quotes, which a client may have written, is one."""
_VLLM = re.compile(
    r"^(?:(?P<time>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?\S*)\s+)?.{0,60}?INFO:?\s.{0,80}?"
    r"(?P<ip>[0-9A-Fa-f.:\[\]]{2,47}):\d+ - \"[A-Z]+ [^\"]+\" (?P<status>\d{3})"
)
_MONTHS = {
    name: number
    for number, name in enumerate(
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], 1
    )
}


def nginx(line: str) -> Row | None:
    """A line of nginx's (or Apache's) combined log; `key=…` and `rt=seconds` behind it are read. None: it is none.

    The account is the key, else the name of basic authentication, else the address. Of several keys the first counts.
    """
    found = _ACCESS.fullmatch(line)
    head = _HEAD.fullmatch(found["head"]) if found is not None else None
    if found is None or head is None:
        return None
    row = Row(ip=found["ip"], status=int(found["status"]), ua=_stated(found["ua"]))
    parts = list(_BEHIND.finditer(found["rest"]))
    keys = [part["quoted"] or part["key"] or "-" for part in parts if (part["quoted"], part["key"]) != (None, None)]
    durations = [seconds for part in parts if (seconds := _seconds(part))]
    row.key = _stated(keys[0]) if keys else None
    row.latency_ms = number_of(float(durations[0]) * 1000) if durations else None
    row.account = row.key or _stated(head["user"]) or f"ip {found['ip']}"
    row.time_us = _access_time(head["time"])
    return row


def _seconds(part: re.Match[str]) -> str | None:
    """How long an answer took, of several parts the first (`0.120, 0.004`), where a part of a line says so."""
    found = re.match(r"\d+(?:\.\d+)?", part["quoted_seconds"] or part["seconds"] or "")
    return found[0] if found is not None else None


def _stated(value: str | None) -> str | None:
    """A field of an access log, where `-` means that there is none."""
    return None if value in (None, "-", "") else value


def vllm(line: str) -> Row | None:
    """A line of vLLM's (uvicorn's) access log with a time in front; the account is the address. None: it is none."""
    found = _VLLM.match(line)
    if found is None:
        return None
    ip = found["ip"].strip("[]")
    stamp = found["time"]
    return Row(
        ip=ip,
        account=f"ip {ip}",
        status=int(found["status"]),
        time_us=time_of(stamp.replace(",", ".")) if stamp else None,
    )


def _access_time(text: str) -> int | None:
    """Of `10/Oct/2026:13:55:36 +0200`."""
    found = re.match(r"(\d\d)/(\w{3})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-])(\d\d)(\d\d)$", text)
    if found is None or found[2] not in _MONTHS:
        return time_of(text)
    zone = datetime.timedelta(hours=int(found[8]), minutes=int(found[9]))
    try:
        moment = datetime.datetime(
            int(found[3]),
            _MONTHS[found[2]],
            int(found[1]),
            int(found[4]),
            int(found[5]),
            int(found[6]),
            tzinfo=datetime.UTC,
        )
    except ValueError:
        return None
    return time_of((moment - zone if found[7] == "+" else moment + zone).timestamp())


OBJECTS: dict[str, Callable[[Object], Row]] = {
    "openai": openai,
    "litellm": litellm,
    "otel": otel,
    "stillroom": stillroom,
}
LINES: dict[str, Callable[[str], Row | None]] = {"nginx": nginx, "vllm": vllm}
FORMATS = ("auto", *OBJECTS, *LINES, "parquet")


def recognise(record: Object) -> str:
    """Which of :data:`OBJECTS` an object is of."""
    if record.get("log") == "stillroom":
        return "stillroom"
    if "startTime" in record and ("api_key" in record or "call_type" in record):
        return "litellm"
    attributes = record.get("attributes", record)
    keys = attributes if isinstance(attributes, dict) else _attributes(attributes)
    if any(str(key).startswith("gen_ai.") for key in keys):
        return "otel"
    return "openai"
