"""Runs the application on a socket and says where."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path

import uvicorn

from stillroom.core.errors import StillroomError, UsageError
from stillroom.core.marks import DELTA, read_key
from stillroom.core.plain import shown
from stillroom.runtime.engine import EngineOptions
from stillroom.runtime.facts import require_drafter
from stillroom.serving.app import Limits, Service, make_app
from stillroom.serving.guard import require_key
from stillroom.serving.mark import Marking
from stillroom.serving.models import open_model
from stillroom.serving.peer import Connection, can_tell
from stillroom.serving.pool import Pool, ServedModel
from stillroom.serving.request_log import RequestLog
from stillroom.switch import Switch


def settings(service: Service, host: str, port: int, proxies: list[str] | None = None) -> uvicorn.Config:
    """How the application is put on a socket.

    Args:
        service: What is served.
        host: The address.
        port: The port; 0 takes a free one.
        proxies: Addresses whose word on where a request came from is believed (``X-Forwarded-For``); none by default.
    """
    # Threads take turns often: the one that looks at the switch waits behind every other one.
    sys.setswitchinterval(0.001)
    return uvicorn.Config(
        make_app(service),
        host=host,
        port=port,
        http=Connection,
        log_level="warning",
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies or [],
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        ws="none",
    )


def run(service: Service, host: str, port: int, proxies: list[str] | None = None) -> None:
    """Serve until Ctrl-C or a signal to end. Arguments as of :func:`settings`."""
    _Server(settings(service, host, port, proxies), service).run()


def own_key(folder: Path) -> str:
    """The key by which a user is known to the user's own server, where the system does not tell; made if there is none."""
    path = folder / "serve.key"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError), open(path, "x", encoding="ascii", opener=_private) as stream:
            stream.write(secrets.token_hex(32) + "\n")
    return path.read_text(encoding="ascii").strip()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def serve_models(
    models: list[Path],
    host: str,
    port: int,
    *,
    keys: list[str],
    allow_hosts: list[str],
    context: int,
    parallel: int,
    queue: int,
    threads: int | None,
    batch: int,
    memory_bytes: int | None,
    idle_seconds: float | None,
    timeout: float,
    proxies: list[str] | None = None,
    mark: Path | None = None,
    mark_delta: float = DELTA,
    request_log: Path | None = None,
    request_log_texts: bool = False,
    drafter: Path | None = None,
    drafts: int = 4,
) -> None:
    """Open models and serve them: what :func:`stillroom.serve` does.

    Raises:
        SwitchedOff: The owner's switch is off.
        UsageError: No model is named, or the address needs a key.
    """
    switch = Switch()
    switch.require_on()
    if not models:
        raise UsageError("No model is named.", "Name a package, a run's folder or a GGUF file.")
    require_key(host, keys)
    marking = Marking(read_key(mark), mark_delta) if mark is not None else None
    options = EngineOptions(context=context, threads=threads, batch=batch, parallel=parallel)
    with contextlib.ExitStack() as opened:
        found = [opened.enter_context(open_model(path)) for path in models]
        if drafter is not None:
            drafting = opened.enter_context(open_model(drafter))
            for model in found:
                require_drafter(model.gguf, drafting.gguf)
            options = replace(options, drafter=drafting.gguf, drafts=drafts)
            _say(f"{drafting.name} drafts, {drafts} tokens at a time; /metrics counts what is accepted.")
        pool = Pool([ServedModel(model, options, switch, queue) for model in found], memory_bytes, idle_seconds)
        opened.callback(pool.close)
        hosts = (*Limits().hosts, f"[{host.lower()}]" if ":" in host else host.lower(), *allow_hosts)
        own = ""
        if not keys and not can_tell():
            own = own_key(switch.places.data)
            _say(f"Sessions, the switch and figures need the key in {switch.places.data / 'serve.key'}.")
        if marking is not None:
            _say(
                f"Answers are marked: key {marking.key.name} (commitment {marking.key.secret.commitment}), "
                f"delta {marking.delta:g}."
            )
        log = RequestLog(request_log, texts=request_log_texts) if request_log is not None else None
        if log is not None:
            opened.callback(log.close)
        limits = Limits(seconds=timeout, keys=keys, hosts=hosts, own_key=own)
        run(Service(pool, switch, limits, marking=marking, request_log=log), host, port, proxies)


class _Server(uvicorn.Server):
    """Loads the models when the socket is open, and says what is active."""

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
        warming = asyncio.ensure_future(self._service.preparing.warm())
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
        await warming
        # What is loaded by now stays: to look through it for cycles, every few seconds, would hold up every stream.
        gc.collect()
        gc.freeze()


def _say(text: str) -> None:
    sys.stderr.write(shown(text) + "\n")
    sys.stderr.flush()
