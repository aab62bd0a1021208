"""Handing answers to clients: nothing follows once the switch is off or the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stillroom.serving import problems
from stillroom.serving.hush import Hush, ServerLine
from stillroom.switch.state import Switch

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection."""


class Delivery:
    """The way of all answers of one server.

    Args:
        switch: The switch that governs it.
        seconds: Longest time that a request may take.
    """

    def __init__(self, switch: Switch, seconds: float) -> None:
        self.switch = switch
        self.seconds = seconds
        self.registration = ServerLine(switch.places)
        self.off = asyncio.Event()
        self.hush = Hush(switch, self.registration, self._told)

    def _told(self, on: bool) -> None:
        if on:
            self.off.clear()
        else:
            self.off.set()

    async def look(self) -> bool:
        """One look at the switch; wakes everybody who waits while it is off."""
        on = self.switch.is_on()
        self._told(on)
        return on

    async def race(self, request: Request, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, unless the client goes, the switch turns off or time runs out.

        Raises:
            ClientGone: The client went.
            SwitchedOff: The switch was turned off.
            TimeoutError: It took too long.
        """
        await self.look()
        task = asyncio.ensure_future(work)
        others = [asyncio.ensure_future(_gone(request.receive)), asyncio.ensure_future(self.off.wait())]
        try:
            await asyncio.wait([task, *others], timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
            self.switch.require_on()
            if task.done():
                return task.result()
            if others[0].done():
                raise ClientGone
            raise TimeoutError(f"The request took more than {self.seconds:.0f} seconds.")
        finally:
            for each in (task, *others):
                each.cancel()
            await asyncio.gather(task, *others, return_exceptions=True)

    def close(self) -> None:
        """Leave the list of servers."""
        self.hush.close()
        self.registration.close()


@dataclass(frozen=True)
class StreamForm:
    """How the events of a stream are written.

    Attributes:
        media_type: What the stream is.
        event: The text of one event.
        end: The text at its proper end.
    """

    media_type: str
    event: Callable[[dict[str, Any]], str]
    end: str = ""


def _plain_event(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


EVENTS = StreamForm("text/event-stream", _plain_event, "data: [DONE]\n\n")
"""Server-sent events, as the OpenAI API has them."""
NAMED_EVENTS = StreamForm(
    "text/event-stream", lambda event: f"event: {event.get('type', 'error')}\n{_plain_event(event)}"
)
"""Server-sent events that have names, as the Responses API has them."""
LINES = StreamForm("application/x-ndjson", lambda event: json.dumps(event, ensure_ascii=False) + "\n")
"""One JSON value a line, as Ollama has them."""


class EventStream(Response):
    """A stream. Every event is handed over under the switch's lock, after one more look at the switch."""

    def __init__(self, delivery: Delivery, events: AsyncIterator[dict[str, Any]], form: StreamForm = EVENTS) -> None:
        self.delivery = delivery
        self.events = events
        self.form = form
        self.media_type = form.media_type
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what comes until it ends, the client goes, time runs out or the switch is off."""
        with self.delivery.hush.answering(scope):
            await self._answer(receive, send)

    async def _answer(self, receive: Receive, send: Send) -> None:
        await self.delivery.look()
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pump = asyncio.ensure_future(self._pump(send))
        others = [asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(self.delivery.off.wait())]
        error: BaseException | None = None
        try:
            await asyncio.wait([pump, *others], timeout=self.delivery.seconds, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                error = pump.exception()
            elif others[0].done():
                return
            elif others[1].done():
                # At once: `off` waits for it, and cuts off what takes longer. Ending the events may wait for an engine.
                pump.cancel()
                await self._finish(TimeoutError(), send)
                return
            else:
                error = TimeoutError("The request took too long.")
        finally:
            for each in (pump, *others):
                each.cancel()
            await asyncio.gather(pump, *others, return_exceptions=True)
            with contextlib.suppress(Exception):
                await self.events.aclose()  # type: ignore[attr-defined]
        await self._finish(error, send)

    async def _finish(self, error: BaseException | None, send: Send) -> None:
        if error is not None:
            try:
                self.delivery.switch.require_on()
            except Exception as off:
                error = off
            status, code, message = problems.explain(error)
            # Headers are gone: the client gets the error in its stream, never silence.
            await send(_body(self.form.event(problems.body(status, code, message)), more=True))
        await send(_body("", more=False))

    async def _pump(self, send: Send) -> None:
        async for event in self.events:
            data = _body(self.form.event(event), more=True)
            with self.delivery.registration.delivering():
                self.delivery.switch.require_on()
                await send(data)
        if self.form.end:
            await send(_body(self.form.end, more=True))


def _body(text: str, more: bool) -> Message:
    return {"type": "http.response.body", "body": text.encode("utf-8", "replace"), "more_body": more}


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
