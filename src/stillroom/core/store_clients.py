"""Clients of an object store, whose limits of time depend on how much is sent.

obstore gives a request 30 seconds, whatever its size, so that a large object on a slow line would fail every time. Here what is
read may take as long as it likes while bytes arrive, and what is sent has the time that its size takes on a slow line.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

SILENCE = 30.0
"""Seconds without a byte of the answer after which a read is tried again; also what a request has besides the time to send."""
SLOWEST = 500_000
"""Bytes per second of the slowest line on which an object is sent."""
READ_SECONDS = 24 * 3600.0
"""Of a whole read."""
RETRY_SECONDS = (180.0, 840.0)
"""Seconds from its first try in which a request is tried again, least and most: its signature is good for 15 minutes."""
PREFIXES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_", "abfs": "AZURE_"}
"""What the variables of the environment begin with, by the URL's scheme."""
OPTIONS = (
    "allow_http",
    "allow_invalid_certificates",
    "connect_timeout",
    "default_content_type",
    "http1_only",
    "http2_keep_alive_interval",
    "http2_keep_alive_timeout",
    "http2_keep_alive_while_idle",
    "http2_only",
    "pool_idle_timeout",
    "pool_max_idle_per_host",
    "proxy_ca_certificate",
    "proxy_excludes",
    "proxy_url",
    "randomize_addresses",
    "read_timeout",
    "timeout",
    "user_agent",
)
"""Options of the HTTP client that obstore reads from the environment, but not beside options that it is given."""


def seconds_to_send(count: int) -> float:
    """Seconds that a request with ``count`` bytes has: those of the next power of two, so that there are few clients."""
    return SILENCE + (1 << max(0, count - 1).bit_length()) / SLOWEST


class Clients:
    """The clients of one URL, made when they are needed. A limit of one's own (``AWS_TIMEOUT``) holds for all of them.

    Args:
        url: The bucket with its path.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        prefix = PREFIXES[urlsplit(url).scheme.lower()]
        named = {name: os.environ.get(prefix + name.upper()) for name in OPTIONS}
        self._options: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        self._made: dict[tuple[float, bool], Any] = {}

    def reading(self) -> Any:
        """The client for what is read and listed."""
        return self._client(READ_SECONDS, reads=True)

    def writing(self, count: int = 0) -> Any:
        """The client for a request that sends ``count`` bytes."""
        # The client's limit on silence would count the time to send, in which no byte of an answer comes.
        return self._client(seconds_to_send(count), reads=False)

    def _client(self, seconds: float, *, reads: bool) -> Any:
        from obstore.store import from_url

        if (seconds, reads) not in self._made:
            options: Any = {"timeout": timedelta(seconds=seconds)}
            if reads:
                options["read_timeout"] = timedelta(seconds=SILENCE)
            options |= self._options
            least, most = RETRY_SECONDS
            self._made[seconds, reads] = from_url(
                self._url,
                client_options=options,
                retry_config={"retry_timeout": timedelta(seconds=min(least + seconds, most))},
            )
        return self._made[seconds, reads]
