"""Renders chat templates in a child process with limits on memory and time.

A chat template is a program that comes with a model. Jinja's sandbox stops it from reaching objects; only the system stops
it from taking all memory or never ending. On Linux a seccomp filter keeps the child from changing files, from sockets and from
other programs as well. One child serves any number of renderings, and is started anew after a violation.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import selectors
import subprocess
import threading
import time
from datetime import datetime
from typing import Any

from stillroom.core.errors import CorpusError, EngineFailed, InspectionRefused
from stillroom.core.sandbox.child import isolated

WALL_SECONDS = 120.0
"""After this time the child is ended even if it did nothing: the machine may be busy, so it is long."""
_CHILD = "stillroom.inspection.template_child"


def render_chat(template: str, messages: list[dict[str, Any]], *, where: str = "", **variables: Any) -> str:
    """The text of a conversation under a chat template.

    The template has ``raise_exception`` and, where ``strftime_now`` is given as a date, that function.

    Args:
        template: A Jinja template, as Hugging Face tokenizers carry it.
        messages: Role and content of each, and whatever else the template reads; JSON values.
        where: The place in the corpus or run, for messages.
        variables: Further names that the template sees; JSON values, and a date for ``strftime_now``.

    Raises:
        CorpusError: The template refuses the conversation, or is none.
        InspectionRefused: The template took more memory or time than any template needs, or breaks the rules.
        EngineFailed: The child could not be started.
    """
    return _RENDERER.render(template, messages, where, variables)


class _Renderer:
    """The one child of this process, and the lock that its callers take turns by."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._known: set[str] = set()
        self._checked: set[str] = set()

    def render(self, template: str, messages: list[dict[str, Any]], where: str, variables: dict[str, Any]) -> str:
        key = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()
        self._check(key, template, where)
        now = variables.get("strftime_now")
        if isinstance(now, datetime):
            variables = variables | {"strftime_now": now.isoformat()}
        with self._lock:
            answer = self._ask(key, template, messages, variables)
        if "text" in answer:
            return str(answer["text"])
        place = f"{where}: " if where else ""
        if "refused" in answer:
            raise CorpusError(
                f"{place}the teacher's chat template refuses this chat: {answer['refused']}.",
                "Check the order and the roles of its messages.",
            )
        raise InspectionRefused(
            f"{place}the chat template was stopped: {_LIMITS[answer['limit']]}.",
            "No chat needs that much; do not use this template.",
        )

    def _check(self, key: str, template: str, where: str) -> None:
        if key not in self._checked:
            from stillroom.inspection.template_rules import require_template

            require_template(template, where or "the chat template")
            self._checked.add(key)

    def _ask(
        self, key: str, template: str, messages: list[dict[str, Any]], variables: dict[str, Any]
    ) -> dict[str, Any]:
        child = self._ready()
        request: dict[str, Any] = {"key": key, "messages": messages, "variables": variables, "template": template}
        if key in self._known:
            del request["template"]
        try:
            data = json.dumps(request).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return {"refused": f"its messages are not plain values ({error})"}
        try:
            child.stdin.write(len(data).to_bytes(4, "big") + data)  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            deadline = time.monotonic() + WALL_SECONDS
            length = int.from_bytes(self._read(child, 4, deadline), "big")
            answer: dict[str, Any] = json.loads(self._read(child, length, deadline))
        except (OSError, EOFError) as error:
            self._end()
            return {"limit": "time" if isinstance(error, TimeoutError) or child.returncode in _TIMED_OUT else "memory"}
        if "limit" in answer:
            self._end()
        elif "text" in answer:
            if len(self._known) >= 64:
                self._known.clear()
            self._known.add(key)
        return answer

    def _read(self, child: subprocess.Popen[bytes], count: int, deadline: float) -> bytes:
        """Exactly so many bytes of the child's answer."""
        descriptor = child.stdout.fileno()  # type: ignore[union-attr]
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while len(data) < count:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                piece = os.read(descriptor, min(1 << 20, count - len(data)))
                if not piece:
                    raise EOFError
                data += piece
        return bytes(data)

    def _ready(self) -> subprocess.Popen[bytes]:
        """The running child; a fork of this process starts one of its own."""
        if self._child is not None and self._owner == os.getpid() and self._child.poll() is None:
            return self._child
        self._end()
        command = isolated(_CHILD, installed_packages=True)
        environment = {"PATH": os.environ.get("PATH", ""), "MALLOC_ARENA_MAX": "1", "LC_ALL": "C"}
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/" if os.name == "posix" else None,
            )
        except OSError as error:
            raise EngineFailed(
                f"The process that renders chat templates did not start: {error.strerror}.", "Free some memory."
            ) from None
        self._owner = os.getpid()
        self._known = set()
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        self._known = set()
        if child is None or self._owner != os.getpid():
            return
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        child.kill()
        child.wait()

    def stop(self) -> None:
        """End the child; the next rendering starts another."""
        with self._lock:
            self._end()


_LIMITS = {
    "memory": "it took more than 512 MiB of memory",
    "time": "it took more than 2 seconds of the CPU",
    "length": "it wrote more than 32 million characters",
}
_TIMED_OUT = (-27, -24)
"""Exit codes of a child that its timer ended (SIGPROF, SIGXCPU)."""
_RENDERER = _Renderer()
atexit.register(_RENDERER.stop)
