"""Who is at the other end of a connection on this machine, and how long a stranger may keep one open."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""How long the head of a request may take to arrive."""
MOST_STRANGERS = 128
"""Connections that have not yet shown a key, or whose they are. One more ends the oldest of them that was listened to and said
nothing."""
HEARD_SECONDS = 0.5
"""A younger connection may have sent its request, and not been listened to yet: a flood of others shuts out no one."""
MOST_UNHEARD = 1024
"""However young they are, more are not taken."""
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
    answered, user = _asked_kernel(client, server)
    return user if answered else _in_table(client, server)


_NETLINK, _SOCK_DIAG, _BY_FAMILY, _REQUEST, _ERROR = 16, 4, 20, 1, 2
"""AF_NETLINK, NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, NLMSG_ERROR."""


def _asked_kernel(client: Address, server: Address) -> tuple[bool, int | None]:
    """The same by one question about this very connection (sock_diag(7)), and first whether it was answered: the table of all
    connections takes the kernel 15 ms to write, at every new one.
    """
    kind = socket.AF_INET6 if ":" in client[0] else socket.AF_INET
    try:
        ends = [socket.inet_pton(kind, each[0].partition("%")[0]).ljust(16, b"\0") for each in (client, server)]
        ports = struct.pack(">HH", client[1], server[1])
        about = struct.pack("BBBxI", kind, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + ports + b"".join(ends)
        about += struct.pack("III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        with socket.socket(_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as link:
            link.settimeout(1)
            link.sendto(struct.pack("IHHII", 16 + len(about), _BY_FAMILY, _REQUEST, 1, 0) + about, (0, 0))
            answer = link.recv(1 << 12)
    except (OSError, struct.error):
        return False, None
    if len(answer) >= 20 and struct.unpack_from("HHIIi", answer, 4)[::4] == (_ERROR, -errno.ENOENT):
        return True, None
    # A header of 16 bytes, four, the connection's 48, three numbers; then whose it is, and the number of its file.
    if len(answer) < 88 or struct.unpack_from("H", answer, 4)[0] != _BY_FAMILY:
        return False, None
    user, file = struct.unpack_from("II", answer, 80)
    return True, _of_open(user, file)


def _of_open(user: int, file: int) -> int | None:
    """The user of a connection's end, unless it was closed: then the kernel calls it root's, whosever it was."""
    return int(user) if file else None


def _in_table(client: Address, server: Address) -> int | None:
    """The same by the kernel's table of all connections."""
    ends = f"{_hex(client)} {_hex(server)}"
    if ends.count(":") != 2:
        return None
    path = "/proc/net/tcp6" if ":" in client[0] else "/proc/net/tcp"
    try:
        with open(path, encoding="ascii") as stream:
            for line in stream:
                fields = line.split()
                if len(fields) > 9 and f"{fields[1]} {fields[2]}" == ends:
                    return _of_open(int(fields[7]), int(fields[9]))
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

    strangers: dict[Connection, bool]
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
        self._listened: asyncio.TimerHandle | None = None
        self._ends: tuple[Address | None, Address | None] = (None, None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; ends the oldest stranger where there are too many."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "connection": self}
        server = self.server
        self._ends = (self.client, (server[0], server[1]) if server is not None and server[1] is not None else None)
        self.strangers[self] = False
        if len(self.strangers) > MOST_STRANGERS:
            silent = next((each for each, said_nothing in self.strangers.items() if said_nothing), None)
            if silent is None and len(self.strangers) > MOST_UNHEARD:
                silent = self
            if silent is not None:
                del self.strangers[silent]
                silent.transport.abort()
        # The loop reads what has arrived before it looks at its timers, however late it is.
        self._listened = self.loop.call_later(HEARD_SECONDS, self._said_nothing)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._arrived()
        if self._listened is not None:
            self._listened.cancel()
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
        if self in self.strangers:
            self.strangers[self] = True
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

    def _said_nothing(self) -> None:
        if self in self.strangers and self._late is not None:
            self.strangers[self] = True

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
