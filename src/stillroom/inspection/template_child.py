"""The child that renders chat templates: a sandbox with limits of the system around it.

It runs as a program of its own, reads requests on standard input and answers on standard output, each a length of four bytes
and JSON. The parent starts it again when a template made it end.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import jinja2
import markupsafe
from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stillroom.core.sandbox.confine import confine, standard_library
from stillroom.core.sandbox.policies import NO_EFFECTS

MEMORY_BYTES = 512 << 20
"""Address space of the child."""
CPU_SECONDS = 2.0
"""CPU time of one rendering."""
LONGEST = 32 << 20
"""Characters of a rendered text."""


class Generation(Extension):
    """``{% generation %}`` around the assistant's words: what it holds is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Take the body as it is."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def make_environment() -> ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it, sandboxed."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    pair = tuple(separators) if separators else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _raise(reason: object) -> None:
    raise TemplateError(str(reason))


def _limit() -> None:
    """Bound memory and files, where the system can."""
    with contextlib.suppress(ImportError):
        import resource

        wanted = {"RLIMIT_AS": MEMORY_BYTES, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 8}
        for name, value in wanted.items():
            with contextlib.suppress(OSError, ValueError, AttributeError):
                resource.setrlimit(getattr(resource, name), (value, value))


def _watch(seconds: float) -> None:
    """End this process after some seconds of CPU time, whatever it is in; nothing ends it at zero."""
    import signal

    with contextlib.suppress(AttributeError, OSError):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer(request: dict[str, Any], compiled: dict[str, Template], environment: ImmutableSandboxedEnvironment) -> Any:
    key = request["key"]
    try:
        template = compiled.get(key)
        if template is None:
            if len(compiled) >= 64:
                compiled.clear()
            template = compiled[key] = environment.from_string(request["template"])
        variables = request["variables"]
        if "strftime_now" in variables:
            variables["strftime_now"] = datetime.datetime.fromisoformat(variables["strftime_now"]).strftime
        text = template.render(messages=request["messages"], **variables)
    except MemoryError:
        return {"limit": "memory"}
    except RecursionError:
        return {"refused": "it calls itself without end"}
    except Exception as error:
        return {"refused": ((str(error) or type(error).__name__).splitlines() or ["no reason"])[0].rstrip(".")[:500]}
    return {"limit": "length"} if len(text) > LONGEST else {"text": text}


def _read(stream: BinaryIO) -> bytes | None:
    start = stream.read(4)
    return stream.read(int.from_bytes(start, "big")) if len(start) == 4 else None


def main() -> None:
    """Answer until the parent is gone."""
    environment = make_environment()
    # What is loaded late would be refused by the limits.
    environment.from_string("{{ [1] | tojson }}{{ 'a'.upper() }}{% if x is defined %}{% endif %}").render()
    _limit()
    late = [Path(module.__file__ or "/dev/null").parent for module in (jinja2, markupsafe)]
    confine([*standard_library(), *late], None, None, 8, policy=NO_EFFECTS, namespace=False)
    compiled: dict[str, Template] = {}
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (data := _read(requests)) is not None:
        _watch(CPU_SECONDS)
        try:
            answer = _answer(json.loads(data), compiled, environment)
            written = json.dumps(answer).encode()
        except MemoryError:
            written = b'{"limit": "memory"}'
        _watch(0)
        answers.write(len(written).to_bytes(4, "big") + written)
        answers.flush()
