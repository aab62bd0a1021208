"""What every request passes first: host, origin, whose it is, size, time.

A web page of somebody else must not reach a server on this machine: its requests carry another origin, or, after the
name of its host was bound to this machine, another host (DNS rebinding). Both are refused; no answer allows sharing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
from collections import Counter
from collections.abc import Iterable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stillroom.core.errors import UsageError
from stillroom.serving.peer import can_tell, is_own, user_of
from stillroom.serving.problems import problem

OPEN_PATHS = ("/", "/health", "/favicon.ico")
"""What needs no key: the page itself, which says nothing of the models, and whether the server lives."""
ONLY_OWN = ("/v1/sessions", "/switch/on", "/switch/feature", "/metrics")
"""What no one gets of whom it is not known that they run the server, or have a key of it."""
ONLY_ONCE = (b"host", b"origin", b"authorization", b"content-length", b"transfer-encoding", b"x-stillroom-page")
GUEST = "guest"
MOST_AT_ONCE = 256
"""Requests of one key that are in work or wait. The switch can be reached beyond that."""
CONTENT_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; script-src {script}; style-src {style}"
)


class Guard:
    """Checks requests before anything else does.

    Args:
        app: What comes after.
        hosts: Names by which the server may be called, without port.
        keys: Keys of which a client must have one. The first is the user's own. Where there are none, other users of this
            machine are refused.
        body_bytes: Longest body.
        body_seconds: Longest time that a body may take to arrive.
        own_key: Where there are no keys and the system does not tell users apart: what proves to be the user.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Iterable[str],
        keys: Iterable[str],
        body_bytes: int,
        body_seconds: float,
        own_key: str = "",
    ) -> None:
        self.app = app
        self.hosts = {host.lower() for host in hosts}
        self.keys = [key.encode() for key in keys]
        self.own_key = own_key.encode()
        self.at_once: Counter[str] = Counter()
        self.body_bytes = body_bytes
        self.body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in ONLY_ONCE and name in headers:
                await problem(400, "invalid_request", f"Two headers {name.decode()}.")(scope, receive, send)
                return
            headers[name] = value
        if b"transfer-encoding" in headers and b"content-length" in headers:
            # Two readers on the way may see two different requests in it (RFC 9112, 6.1).
            await problem(400, "invalid_request", "Two lengths of one body.", close=True)(scope, receive, send)
            return
        owner = self._owner(scope, headers)
        refused = self._refused(scope, headers) or self._unknown(scope["path"], owner)
        if refused is not None:
            await refused(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["owner"], state["known"] = owner if owner is not None else GUEST, owner not in (None, GUEST)
        if state["known"] and "connection" in state:
            state["connection"].known()
        if self.at_once[state["owner"]] >= MOST_AT_ONCE and not scope["path"].startswith("/switch"):
            await problem(429, "too_many_requests", f"{MOST_AT_ONCE} requests are in work.")(scope, receive, send)
            return
        self.at_once[state["owner"]] += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self.at_once[state["owner"]] -= 1

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        left, until = self.body_bytes, asyncio.get_running_loop().time() + self.body_seconds
        complete = False

        async def limited() -> Message:
            nonlocal left, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise BodyRefused(408, "The body took too long to arrive.") from None
            if message["type"] == "http.request":
                left -= len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if left < 0:
                    raise BodyRefused(413, f"The body has more than {self.body_bytes:,} bytes.")
            return message

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    (b"cross-origin-resource-policy", b"same-origin"),
                    (b"cache-control", b"no-store"),
                ]
            await send(message)

        try:
            await self.app(scope, limited, hardened)
        except BodyRefused as error:
            await problem(error.status, "invalid_request", str(error), close=True)(scope, receive, send)

    def _refused(self, scope: Scope, headers: dict[bytes, bytes]) -> Response | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _name(host) not in self.hosts:
            return problem(421, "wrong_host", "This server does not answer under that name.")
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in (f"http://{host}", f"https://{host}"):
            return problem(403, "wrong_origin", "Pages from elsewhere may not use this server.")
        # Following a link to the page is not using it.
        opens_page = scope["path"] == "/" and headers.get(b"sec-fetch-mode") == b"navigate"
        if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin") and not opens_page:
            return problem(403, "wrong_origin", "Pages from elsewhere may not use this server.")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.body_bytes:
            return problem(413, "invalid_request", f"The body has more than {self.body_bytes:,} bytes.", close=True)
        return None

    def _owner(self, scope: Scope, headers: dict[bytes, bytes]) -> str | None:
        """Whose request it is: empty for the user's own, else what stands for a key; None where it is no one's."""
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        given = given.strip() if scheme.lower() == b"bearer" else b""
        if self.keys:
            known = [hmac.compare_digest(given, key) for key in self.keys]
            if not any(known):
                return None
            # What was kept while there were no keys, or one, stays with the first.
            return "" if known[0] else hashlib.sha256(self.keys[known.index(True)]).hexdigest()[:16]
        if self.own_key and hmac.compare_digest(given, self.own_key):
            return ""
        if not can_tell():
            return GUEST
        connection = scope.get("state", {}).get("connection")
        user = connection.user() if connection is not None else user_of(scope.get("client"), scope.get("server"))
        return "" if is_own(user) else None

    def _unknown(self, path: str, owner: str | None) -> Response | None:
        if path in OPEN_PATHS or owner == "":
            return None
        if owner is None:
            said = "A key is needed: Authorization: Bearer KEY." if self.keys else "This server is another user's."
            return problem(401, "invalid_api_key", said)
        if owner == GUEST and any(path == each or path.startswith(f"{each}/") for each in ONLY_OWN):
            return problem(
                401, "invalid_api_key", "The server's own key is needed; it says at its start where that is."
            )
        return None


class BodyRefused(Exception):
    """A body that is too long or too slow."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


_HOST = re.compile(r"(\[[0-9a-f:.%]+\]|[^\s:/@\[\]]+)(?::[0-9]{1,5})?", re.ASCII)


def _name(host: str) -> str:
    """A host without its port; empty where it is anything else than a name or address, and perhaps a port."""
    found = _HOST.fullmatch(host)
    return found.group(1) if found else ""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def require_key(host: str, keys: list[str]) -> None:
    """Refuse to be reached from other machines without a key.

    Raises:
        UsageError: Says what to do.
    """
    if not is_loopback(host) and not keys:
        raise UsageError(
            f"Serving on {host} would let other machines in, and there is no key.",
            "Write one into a file and give it: --key-file FILE.",
        )
    for key in keys:
        if len(key) < 16 or not key.isascii() or not key.isprintable():
            raise UsageError("A key has at least 16 characters, all of them plain ASCII.", "Write a longer one.")
