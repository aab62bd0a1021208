"""Who is at the other end of a connection on this machine, and how long a stranger may keep one open."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""How long the head of a request may take to arrive."""
MOST_STRANGERS = 128
"""Connections that have not yet shown a key, or whose they are. One more ends the oldest of them."""
MOST_IDLE = 256
"""Connections that wait for another request of somebody known. One more ends the one that has waited longest: open files are
few on some systems, and the page's `off` needs one."""
Address = tuple[str, int]


def can_tell() -> bool:
    """Whether the system says whose a connection on this machine is."""
    return sys.platform == "linux" and os.access("/proc/net/tcp", os.R_OK)


def user_of(client: Address | None, server: Address | None) -> int | None:
    """The number of the user whose end of a connection the client's is; None where the system does not say.

    Args:
        client: Address and port of the client's end.
        server: Address and port of the server's.
    """
    if client is None or server is None:
        return None
    ends = f"{_hex(client)} {_hex(server)}"
    if ends.count(":") != 2:
        return None
    path = "/proc/net/tcp6" if ":" in client[0] else "/proc/net/tcp"
    try:
        with open(path, encoding="ascii") as stream:
            for line in stream:
                fields = line.split()
                if len(fields) > 7 and f"{fields[1]} {fields[2]}" == ends:
                    return int(fields[7])
    except (OSError, ValueError):
        return None
    return None


def is_own(user: int | None) -> bool:
    """Whether a user is the one who runs the server, or the system's own."""
    return user is not None and user in (os.getuid(), 0)


def _hex(address: Address) -> str:
    """An address as the kernel's tables write it."""
    host, port = address[0].partition("%")[0], address[1]
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        packed = socket.inet_pton(kind, host)
    except OSError:
        return ""
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    number = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return f"{number}:{port:04X}"


class Connection(H11Protocol):
    """A connection whose requests must arrive in time, and which makes way for others until it is known whose it is."""

    strangers: dict[Connection, None]
    idle: dict[Connection, None]

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        # One list for each server: its connections share a state.
        shared: dict[str, Any] = vars(self.server_state)
        self.strangers = shared.setdefault("stillroom_strangers", {})
        self.idle = shared.setdefault("stillroom_idle", {})
        self._late: asyncio.TimerHandle | None = None
        self._user: int | None = None
        self._asked = False
        self._ends: tuple[Address | None, Address | None] = (None, None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; ends the oldest stranger where there are too many."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": self}
        server = self.server
        self._ends = (self.client, (server[0], server[1]) if server is not None and server[1] is not None else None)
        self.strangers[self] = None
        if len(self.strangers) > MOST_STRANGERS:
            oldest = next(iter(self.strangers))
            del self.strangers[oldest]
            oldest.transport.abort()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._arrived()
        self.strangers.pop(self, None)
        self.idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a head that has arrived no longer has a deadline."""
        self.idle.pop(self, None)
        if self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._arrived()

    def on_response_complete(self) -> None:
        """After an answer a connection may be idle, as long as the server's setting says."""
        super().on_response_complete()
        self._arrived()
        # The next request may have come behind the last one, and be in work by now.
        if self not in self.strangers and not self.transport.is_closing() and self.cycle.response_complete:
            self.idle[self] = None
            if len(self.idle) > MOST_IDLE:
                # One whose answer has not left whole is not idle yet.
                done = (each for each in self.idle if not each.transport.get_write_buffer_size())
                oldest = next(done, None)
                if oldest is not None:
                    del self.idle[oldest]
                    oldest.transport.abort()

    def user(self) -> int | None:
        """Whose it is, where the system says."""
        if not self._asked:
            self._user, self._asked = user_of(*self._ends), True
        return self._user

    def known(self) -> None:
        """The client has shown who it is."""
        self.strangers.pop(self, None)

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEAD_SECONDS, self._end)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.abort()
