"""Runs the application on a socket and says where. Knows nothing of what it serves."""

from __future__ import annotations

import asyncio
import sys

import uvicorn

from stillroom.core.errors import StillroomError
from stillroom.serving.app import Service, make_app


def run(service: Service, host: str, port: int) -> None:
    """Serve until Ctrl-C or a signal to end.

    Args:
        service: What is served.
        host: The address.
        port: The port; 0 takes a free one.
    """
    config = uvicorn.Config(
        make_app(service),
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        limit_concurrency=512,
        ws="none",
    )
    _Server(config, service).run()


class _Server(uvicorn.Server):
    """Loads the models when the socket is open, and says what is in force."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.should_exit or not self.started:
            return
        for server in self.servers:
            for socket in server.sockets:
                address, port = socket.getsockname()[:2]
                shown = f"[{address}]" if ":" in address else address
                _say(f"Serving at http://{shown}:{port} (API: http://{shown}:{port}/v1). Ctrl-C ends.")
        self._loading = asyncio.ensure_future(self._load())

    async def _load(self) -> None:
        for model in self._service.pool.models.values():
            try:
                engine = await self._service.pool.running(model)
            except StillroomError as error:
                _say(f"{model.name}: {error}")
                continue
            state = model.opened.passport().get("signature", {}).get("state", "unknown")
            _say(f"{model.name}: ready ({state}). Its process:")
            for measure, word in engine.confined.items():
                _say(f"  {measure}: {word}")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
