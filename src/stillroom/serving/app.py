"""The server: the OpenAI API, sessions, the chat page, the switch, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stillroom.core.errors import StillroomError, UsageError
from stillroom.core.memory import release_memory
from stillroom.core.version import tool_version
from stillroom.runtime import transport as local
from stillroom.runtime.worker import RELEASE_SECONDS
from stillroom.serving import answers, ollama, page, problems, responses
from stillroom.serving.apart import run_apart
from stillroom.serving.deliver import (
    EVENTS,
    LINES,
    NAMED_EVENTS,
    ClientGone,
    Delivery,
    EventStream,
    StreamForm,
)
from stillroom.serving.embeddings import embed, require_kind
from stillroom.serving.guard import BodyRefused, Guard, is_loopback
from stillroom.serving.hush import remember_transport
from stillroom.serving.mark import Marking
from stillroom.serving.metrics import Metrics
from stillroom.serving.openapi import describe
from stillroom.serving.passport import in_words
from stillroom.serving.pool import Pool, ServedModel
from stillroom.serving.preparing import SMALL_BODY, Preparing
from stillroom.serving.preparing_child import read_body
from stillroom.serving.request_log import LoggedRequests, RequestLog, usage_of
from stillroom.serving.requests import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    NewSession,
    SessionName,
    SwitchFeature,
)
from stillroom.serving.sessions import Session, SessionStore
from stillroom.serving.speech import CallStream
from stillroom.switch import stopping
from stillroom.switch.state import Switch

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
PAGE_USES = ("/v1/chat/completions", "/v1/models", "/v1/sessions")
"""What the chat page asks for. With its token everything else is still the API."""
TEND_SECONDS = 1.0
"""How often is looked at everything but the switch."""


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        body_bytes: Longest body.
        body_seconds: Longest time that a body may take to arrive.
        seconds: Longest time that a request may take.
        keys: Keys of which a client must have one.
        hosts: Names by which the server may be called.
        own_key: Where there are no keys: what proves to be the user who runs the server, for systems that do not tell.
    """

    body_bytes: int = 4 << 20
    body_seconds: float = 20.0
    seconds: float = 600.0
    keys: list[str] = field(default_factory=list)
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]")
    own_key: str = ""


class Service:
    """Everything that the endpoints share.

    Args:
        pool: The models.
        switch: The switch that governs all of it.
        limits: What is taken.
        sessions: The kept conversations; None takes the user's.
        marking: Marks every answer; None marks none.
        request_log: Where requests are logged; None logs none.
    """

    def __init__(
        self,
        pool: Pool,
        switch: Switch,
        limits: Limits,
        sessions: SessionStore | None = None,
        marking: Marking | None = None,
        request_log: RequestLog | None = None,
    ) -> None:
        self.marking = marking
        self.request_log = request_log
        self.pool = pool
        self.switch = switch
        self.limits = limits
        self.sessions = sessions or SessionStore(switch.places.data / "sessions")
        self.answerer = answers.Answerer(pool, self.sessions)
        for model in pool.models.values():
            model.shared = len(limits.keys) > 1
        self.delivery = Delivery(switch, limits.seconds)
        self.preparing = Preparing(switch)
        self.metrics = Metrics(pool, self.answerer, switch)
        self.page_token = secrets.token_hex(16)
        self.started = time.time()
        self._watching: dict[str, asyncio.Future[None]] = {}
        self._switch_threads = ThreadPoolExecutor(4, "switch")

    def close(self) -> None:
        """Leave the list of servers, and end the threads of the switch."""
        self.preparing.close()
        self.delivery.close()
        self._switch_threads.shutdown(wait=False)

    def require(self, request: Request, feature: str | None = None) -> None:
        """Ask the switch: for the page's own requests as chat, for everybody else's as API, and for who only says to be
        the page as both.
        """
        given, path = request.headers.get("x-stillroom-page"), request.scope["path"]
        used = any(path == each or path.startswith(f"{each}/") for each in PAGE_USES)
        if given is not None:
            self.switch.require_on("chat")
        if given is None or not used or not secrets.compare_digest(given.encode(), self.page_token.encode()):
            self.switch.require_on("api")
        if feature is not None:
            self.switch.require_on(feature)

    async def models(self, request: Request) -> Response:
        """The models."""
        self.require(request)
        found = [_model(model) for model in self.pool.models.values()]
        return JSONResponse({"object": "list", "data": found})

    async def one_model(self, request: Request) -> Response:
        """One model, and its provenance summary."""
        self.require(request)
        model = self.pool.model(request.path_params["name"])
        passport = model.opened.passport()
        return JSONResponse({**_model(model), "passport": passport, "provenance": in_words(passport)})

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        asked = await self._parse(request, ChatRequest)
        model, question, events = await self.ask(request, asked)
        if not asked.stream:
            whole = await self.collect(request, events)
            return self.whole(lambda: answers.join_chat(whole, question, model.name))
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        calls = CallStream(old=question.calls == "old").turn if question.calls else None

        def each(event: dict[str, Any]) -> list[dict[str, Any]]:
            return [{**one, **answers.notes(question)} for one in _public(event, model.name, usage, calls)]

        return await self.stream(request, events, each)

    async def ask(
        self, request: Request, asked: ChatRequest
    ) -> tuple[ServedModel, answers.Question, AsyncGenerator[dict[str, Any]]]:
        """What answers a chat: the model, the question, and the events of the answer.

        Raises:
            SwitchedOff, NoModel, NoSession, UnsupportedSchema: It is not answered.
        """
        self.require(request)
        if asked.uses_tools():
            self.switch.require_on("tools")
        model = require_kind(self.pool.model(asked.model), embeddings=False)
        owner = owner_of(request)
        if asked.session is None:
            question = await self._question(request, asked, None, model)
            question.usage = usage_of(request.scope)
            await self._bias(asked, model, question)
            return model, question, self.answerer.events(model, question)
        self.switch.require_on("sessions")
        turn = self.sessions.turn(asked.session)
        # One writer at a time: the next turn of a session begins when the one before it has been kept.
        await self.delivery.race(request, turn.acquire())
        try:
            session = await asyncio.to_thread(self.sessions.load, asked.session, owner)
            question = await self._question(request, asked, session, model)
            question.session = session
            question.usage = usage_of(request.scope)
            await self._bias(asked, model, question)
        except BaseException:
            turn.release()
            raise
        return model, question, _Held(self.answerer.events(model, question), turn)

    async def _question(
        self, request: Request, asked: ChatRequest, session: Session | None, model: ServedModel
    ) -> answers.Question:
        """What a chat asks. Compiling a large schema takes a while, and others are being answered."""
        owner = owner_of(request)
        if session is None and _is_short(asked, len(await request.body())):
            return answers.chat_question(asked, None, model.facts, owner)
        found: answers.Question = await self._prepared(request, "ask", asked, session, model.facts, owner)
        return found

    async def _prepared(self, request: Request, job: str, *arguments: Any) -> Any:
        """The result of a job of :mod:`.preparing_child`, while the client is there and the switch is on."""
        return await self.delivery.race(request, self.preparing.do(owner_of(request), job, *arguments))

    async def _parse(self, request: Request, kind: type[M]) -> M:
        body = await request.body()
        if len(body) <= SMALL_BODY:
            return read_body(kind.__name__, body)  # type: ignore[return-value]
        found: M = await self._prepared(request, "read", kind.__name__, body)
        return found

    async def _chat_of(
        self, request: Request, asked: responses.ResponsesRequest | ollama.OllamaChat | ollama.OllamaGenerate
    ) -> ChatRequest:
        """The chat completion that a request of another API is."""
        if len(await request.body()) <= SMALL_BODY:
            return asked.chat()
        found: ChatRequest = await self._prepared(request, "chat", asked)
        return found

    async def _bias(
        self, asked: ChatRequest | CompletionRequest, model: ServedModel, question: answers.Question
    ) -> None:
        """Check a request's biases, and add the owner's mark to a question, where answers are marked."""
        if self.marking is not None:
            self.marking.require_allowed(asked)
            question.body["logit_bias"] = await asyncio.to_thread(self.marking.biases, model)
        elif asked.logit_bias:
            asked.require_tokens(await asyncio.to_thread(model.vocabulary))

    async def complete(self, request: Request) -> Response:
        """Completions of one text or several."""
        self.require(request)
        asked = await self._parse(request, CompletionRequest)
        model = require_kind(self.pool.model(asked.model), embeddings=False)
        owner = owner_of(request)
        if asked.form() is None:
            questions = [answers.completion_question(asked, prompt, model.facts, owner) for prompt in asked.prompts()]
        else:
            questions = await self._prepared(request, "complete", asked, model.facts, owner)
        for question in questions:
            question.usage = usage_of(request.scope)
            await self._bias(asked, model, question)
        events = self.answerer.several(model, questions)
        if not asked.stream:
            whole = [answers.public(event, model.name) for event in await self.collect(request, events)]
            return self.whole(lambda: answers.join_completion(whole, model.name))
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return await self.stream(request, events, lambda event: _public(event, model.name, usage, None))

    async def respond(self, request: Request) -> Response:
        """A response, as agents ask for it."""
        self.require(request)
        asked = await self._parse(request, responses.ResponsesRequest)
        model, question, events = await self.ask(request, await self._chat_of(request, asked))
        if not asked.stream:
            whole = await self.collect(request, events)
            return self.whole(lambda: responses.response(answers.join_chat(whole, question, model.name)))
        calls = CallStream().turn if question.calls else None
        stream = responses.ResponseStream(model.name)

        def each(event: dict[str, Any]) -> list[dict[str, Any]]:
            return [made for one in _public(event, model.name, True, calls) for made in stream.turn(one)]

        return await self.stream(request, events, each, NAMED_EVENTS)

    async def ollama_tags(self, request: Request) -> Response:
        """The models, for clients of Ollama."""
        self.require(request)
        return JSONResponse(ollama.tags(list(self.pool.models.values())))

    async def ollama_version(self, request: Request) -> Response:
        """The version of Ollama whose API this is."""
        self.require(request)
        return JSONResponse({"version": ollama.VERSION})

    async def ollama_show(self, request: Request) -> Response:
        """One model, for clients of Ollama."""
        self.require(request)
        asked = await self._parse(request, ollama.Asked)
        return JSONResponse(ollama.shown(self.pool.model(ollama.public_name(asked.model or asked.name))))

    def _loaded(self, asked: ollama.OllamaChat | ollama.OllamaGenerate) -> Response:
        model = self.pool.model(ollama.public_name(asked.model))
        return JSONResponse(ollama.loaded(model.name, asked))

    async def ollama_chat(self, request: Request) -> Response:
        """A chat, for clients of Ollama."""
        self.require(request)
        asked = await self._parse(request, ollama.OllamaChat)
        if asked.asks_nothing:
            return self._loaded(asked)
        model, question, events = await self.ask(request, await self._chat_of(request, asked))
        calls = CallStream().turn if question.calls else None
        return await self._lines(request, model, events, calls, asked.stream, generate=False)

    async def ollama_generate(self, request: Request) -> Response:
        """A text, for clients of Ollama."""
        self.require(request)
        asked = await self._parse(request, ollama.OllamaGenerate)
        if asked.asks_nothing:
            return self._loaded(asked)
        if asked.raw:
            wanted = asked.completion()
            model = require_kind(self.pool.model(wanted.model), embeddings=False)
            if wanted.form() is None:
                question = answers.completion_question(wanted, wanted.prompts()[0], model.facts, owner_of(request))
            else:
                (question,) = await self._prepared(request, "complete", wanted, model.facts, owner_of(request))
            question.usage = usage_of(request.scope)
            await self._bias(wanted, model, question)
            events = self.answerer.several(model, [question])
        else:
            model, _, events = await self.ask(request, await self._chat_of(request, asked))
        return await self._lines(request, model, events, None, asked.stream, generate=True)

    async def _lines(
        self,
        request: Request,
        model: ServedModel,
        events: AsyncGenerator[dict[str, Any]],
        calls: Callable[[dict[str, Any]], list[dict[str, Any]]] | None,
        stream: bool,
        generate: bool,
    ) -> Response:
        lines = ollama.Lines(model.name, generate)
        if not stream:
            found = await self.collect(request, events)
            whole = [one for event in found for one in _public(event, model.name, True, calls)]
            return self.whole(lambda: lines.whole(whole))

        def each(event: dict[str, Any]) -> list[dict[str, Any]]:
            return [line for one in _public(event, model.name, True, calls) for line in lines.turn(one)]

        return await self.stream(request, events, each, LINES)

    async def embed(self, request: Request) -> Response:
        """Embeddings of texts."""
        self.require(request, "embeddings")
        asked = await self._parse(request, EmbeddingRequest)
        model = require_kind(self.pool.model(asked.model), embeddings=True)
        found = await self.delivery.race(request, embed(self.pool, model, asked, owner_of(request)))
        usage_of(request.scope)["prompt_tokens"] = (found.get("usage") or {}).get("prompt_tokens", 0)
        return self.whole(lambda: found)

    async def list_sessions(self, request: Request) -> Response:
        """The kept conversations."""
        self.require(request, "sessions")
        return JSONResponse({"object": "list", "data": await asyncio.to_thread(self.sessions.list, owner_of(request))})

    async def new_session(self, request: Request) -> Response:
        """Begin a conversation that is kept."""
        self.require(request, "sessions")
        asked = await self._parse(request, NewSession)
        model = require_kind(self.pool.model(asked.model), embeddings=False)
        made = await asyncio.to_thread(
            self.sessions.create, asked.name, model.name, model.digest, asked.system, owner_of(request)
        )
        return JSONResponse(_session(made), 201)

    async def one_session(self, request: Request) -> Response:
        """Export, rename or delete a conversation."""
        self.require(request, "sessions")
        number, owner = request.path_params["number"], owner_of(request)
        if request.method == "DELETE":
            await asyncio.to_thread(self.sessions.delete, number, owner)
            return JSONResponse({"id": number, "deleted": True})
        if request.method == "PATCH":
            name = (await self._parse(request, SessionName)).name
            return JSONResponse(_session(await asyncio.to_thread(self.sessions.rename, number, name, owner)))
        return JSONResponse(_session(await asyncio.to_thread(self.sessions.load, number, owner)))

    async def _for_switch(self, work: Callable[..., T], *arguments: Any) -> T:
        """Work of the switch, in threads that nothing else may use."""
        return await asyncio.get_running_loop().run_in_executor(self._switch_threads, work, *arguments)

    async def switch_status(self, _: Request) -> Response:
        """What the switch says."""
        return JSONResponse(await self._for_switch(stopping.status, self.switch))

    async def switch_off(self, _: Request) -> Response:
        """Turn everything off, and say what was stopped."""
        receipt = await self._for_switch(run_apart, lambda: stopping.off(self.switch).as_dict())
        await self.delivery.look()
        return JSONResponse(receipt)

    async def switch_on(self, request: Request) -> Response:
        """Turn it on again: only from this machine. Remotely it can only be turned off."""
        self._require_here(request)
        await self._for_switch(stopping.on, self.switch)
        await self.delivery.look()
        return await self.switch_status(request)

    async def switch_feature(self, request: Request) -> Response:
        """Make one feature available, enabled or blocked; remotely only blocked."""
        asked = await self._parse(request, SwitchFeature)
        if asked.state != "blocked":
            self._require_here(request)
        await self._for_switch(self.switch.set_feature, asked.feature, asked.state)
        return await self.switch_status(request)

    def watch_engines(self) -> None:
        """Look for engines that have hung, in tasks of their own: the watch over the switch does not wait for them."""
        for model in self.pool.models.values():
            if (task := self._watching.get(model.name)) is None or task.done():
                self._watching[model.name] = asyncio.ensure_future(model.watch())

    async def health(self, request: Request) -> Response:
        """Whether the server lives and what the switch says; to those who may use it also what confines each engine."""
        on = self.switch.is_on()
        said: dict[str, Any] = {
            "status": "ok" if on else "switched_off",
            "version": tool_version(),
            "switch": "on" if on else "off",
        }
        if getattr(request.state, "known", False):
            said["context_policy"] = answers.CONTEXT_POLICY
            said["models"] = [model.describe() for model in self.pool.models.values()]
        return JSONResponse(said, 200 if on else 503)

    async def prometheus(self, request: Request) -> Response:
        """Figures for Prometheus: of all requests together, and so only for the one who runs the server."""
        if owner_of(request):
            raise NotFromAfar("Figures of all keys together are for the first key of the file.", "Use that one.")
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def show_page(self, request: Request) -> Response:
        """The chat page; it is there even when all is off, as it holds the switch.

        Its token is for browsers that open it. Anyone else who fetches the page gets one that opens nothing.
        """
        opens = (
            request.headers.get("sec-fetch-mode") == "navigate" and request.headers.get("sec-fetch-dest") == "document"
        )
        token = self.page_token if opens else secrets.token_hex(16)
        html, policy = page.render(token, bool(self.limits.keys or self.limits.own_key))
        return HTMLResponse(html, headers={"Content-Security-Policy": policy, "X-Frame-Options": "DENY"})

    def _require_here(self, request: Request) -> None:
        if request.client is None or not is_loopback(request.client.host):
            raise NotFromAfar("From another machine the switch can only be turned off.", "Turn it on where it runs.")

    async def collect(self, request: Request, events: AsyncGenerator[dict[str, Any]]) -> list[dict[str, Any]]:
        """All events of an answer."""

        async def work() -> list[dict[str, Any]]:
            found = []
            try:
                async for event in events:
                    if "error" in event:
                        raise local.EngineRefused(500, event["error"])
                    found.append(event)
            finally:
                await events.aclose()
            return found

        return await self.delivery.race(request, work())

    def whole(self, make: Callable[[], Any]) -> Response:
        """One answer, handed over under the switch's lock."""
        answer = JSONResponse(make())
        return _Guarded(answer, self.delivery)

    async def stream(
        self,
        request: Request,
        events: AsyncGenerator[dict[str, Any]],
        turn: Callable[[dict[str, Any]], list[dict[str, Any]]],
        form: StreamForm = EVENTS,
    ) -> Response:
        """A stream of what each event turns into."""
        begun = time.perf_counter()
        # What goes wrong before the first event still has its own status.
        try:
            first: dict[str, Any] | None = await self.delivery.race(request, _first(events))
        except BaseException:
            await events.aclose()
            raise
        self.metrics.first_event.observe(time.perf_counter() - begun)

        async def all_events() -> AsyncIterator[dict[str, Any]]:
            try:
                for each in turn(first) if first is not None else ():
                    yield each
                async for event in events:
                    for each in turn(event):
                        yield each
            finally:
                await events.aclose()

        return EventStream(self.delivery, all_events(), form)


async def _first(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    return await anext(events, None)


def owner_of(request: Request) -> str:
    """Whose request it is: empty for the user's own, else what stands for a key."""
    return str(getattr(request.state, "owner", ""))


class _Held(AsyncGenerator[dict[str, Any], None]):
    """Events that hold a session until they end, or are given up before they began."""

    def __init__(self, events: AsyncGenerator[dict[str, Any]], turn: asyncio.Lock) -> None:
        self._events, self._turn, self._held = events, turn, True

    async def asend(self, value: None) -> dict[str, Any]:
        try:
            return await self._events.asend(value)
        except BaseException:
            self._release()
            raise

    async def athrow(self, *error: Any) -> dict[str, Any]:
        try:
            return await self._events.athrow(*error)
        except BaseException:
            self._release()
            raise

    async def aclose(self) -> None:
        try:
            await self._events.aclose()
        finally:
            self._release()

    def _release(self) -> None:
        if self._held:
            self._held = False
            self._turn.release()


class NotFromAfar(UsageError):
    """Only this machine may do that."""


class _Guarded(Response):
    """An answer that is handed over under the switch's lock, after one more look at the switch."""

    def __init__(self, answer: Response, delivery: Delivery) -> None:
        self.answer = answer
        self.delivery = delivery
        super().__init__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.answer
        with self.delivery.hush.answering(scope):
            try:
                self.delivery.switch.require_on()
            except StillroomError as error:
                answer = problems.answer(error)
            await answer(scope, receive, send)


def _public(
    event: dict[str, Any], model: str, usage: bool, turn: Callable[[dict[str, Any]], list[dict[str, Any]]] | None
) -> list[dict[str, Any]]:
    if "error" in event:
        raise local.EngineRefused(500, event["error"])
    if not usage and not event.get("choices"):
        return []
    event = answers.public(event, model)
    return turn(event) if turn is not None else [event]


def _session(session: Session) -> dict[str, Any]:
    """A session as clients get it."""
    found = asdict(session)
    del found["owner"]
    return found


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "local",
        "context_length": model.options.context,
        "embeddings": model.embedding,
        "loaded": model.engine is not None,
    }


def _is_short(asked: ChatRequest, size: int) -> bool:
    """Whether what a chat asks is told at once: it is short, and no schema has to be compiled."""
    return size <= SMALL_BODY and asked.form() is None and not asked.uses_tools()


Endpoint = Callable[[Request], Awaitable[Response]]


def _caught(endpoint: Endpoint, service: Service) -> Endpoint:
    async def run(request: Request) -> Response:
        status = 499
        try:
            answer = await endpoint(request)
            status = answer.status_code
            return answer
        except (ClientGone, ClientDisconnect):
            return Response(status_code=status)
        except BodyRefused:
            raise
        except UsageError as error:
            known = problems.explain(error)
            code, name = (known[0], known[1]) if known[1] != "engine_failed" else (400, "invalid_request")
            status = 403 if isinstance(error, NotFromAfar) else code
            return problems.problem(status, name, str(error))
        except Exception as error:
            answer = problems.answer(error)
            status = answer.status_code
            return answer
        finally:
            service.metrics.requests.labels(request.scope["route"].path, str(status)).inc()

    return run


def make_app(service: Service) -> Starlette:
    """The application."""
    # The path, what answers, and the body of each method. The description is made from this table.
    described: list[tuple[str, Endpoint, dict[str, type[BaseModel] | None]]] = [
        ("/health", service.health, {"GET": None}),
        ("/metrics", service.prometheus, {"GET": None}),
        ("/v1/models", service.models, {"GET": None}),
        ("/v1/models/{name}", service.one_model, {"GET": None}),
        ("/v1/chat/completions", service.chat, {"POST": ChatRequest}),
        ("/v1/completions", service.complete, {"POST": CompletionRequest}),
        ("/v1/responses", service.respond, {"POST": responses.ResponsesRequest}),
        ("/api/tags", service.ollama_tags, {"GET": None}),
        ("/api/version", service.ollama_version, {"GET": None}),
        ("/api/show", service.ollama_show, {"POST": ollama.Asked}),
        ("/api/chat", service.ollama_chat, {"POST": ollama.OllamaChat}),
        ("/api/generate", service.ollama_generate, {"POST": ollama.OllamaGenerate}),
        ("/v1/embeddings", service.embed, {"POST": EmbeddingRequest}),
        ("/v1/sessions", service.list_sessions, {"GET": None}),
        ("/v1/sessions", service.new_session, {"POST": NewSession}),
        ("/v1/sessions/{number}", service.one_session, {"GET": None, "PATCH": SessionName, "DELETE": None}),
        ("/switch", service.switch_status, {"GET": None}),
        ("/switch/off", service.switch_off, {"POST": None}),
        ("/switch/on", service.switch_on, {"POST": None}),
        ("/switch/feature", service.switch_feature, {"POST": SwitchFeature}),
    ]
    operations = [(path, method, body) for path, _, methods in described for method, body in methods.items()]

    async def openapi(_: Request) -> Response:
        return JSONResponse(describe(operations))

    routes = [
        ("/", service.show_page, ["GET"]),
        ("/openapi.json", openapi, ["GET"]),
        *((path, endpoint, [*methods]) for path, endpoint, methods in described),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.delivery.hush.start()
        watcher = asyncio.create_task(_watch(service))
        try:
            yield
        finally:
            watcher.cancel()
            await service.pool.stop()
            service.close()

    limits = service.limits
    guard = Middleware(
        Guard,
        hosts=limits.hosts,
        keys=limits.keys,
        body_bytes=limits.body_bytes,
        body_seconds=limits.body_seconds,
        own_key=limits.own_key,
    )

    logged = [Middleware(LoggedRequests, log=service.request_log)] if service.request_log is not None else []

    async def not_found(_: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        return problems.problem(status, "not_found" if status == 404 else "invalid_request", "There is nothing here.")

    return _Served(
        routes=[Route(path, _caught(endpoint, service), methods=methods) for path, endpoint, methods in routes],
        # The log first: what the guard refuses is in it, too.
        middleware=[*logged, guard],
        lifespan=lifespan,
        exception_handlers={404: not_found, 405: not_found},
    )


class _Served(Starlette):
    """The application; it notes the connection of each request, so that it can be cut off."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        remember_transport(scope, send)
        await super().__call__(scope, receive, send)


async def _watch(service: Service) -> None:
    """Look at all but the switch once per second. That has a thread of its own (:mod:`.hush`), which waits for nothing."""
    released = time.monotonic()
    while True:
        await asyncio.sleep(TEND_SECONDS)
        try:
            if not service.switch.is_on():
                # They have been ended by then; what is left of them is given up.
                await service.pool.stop(grace=False)
                await service.preparing.tend()
                continue
            await service.pool.tend()
            await service.preparing.tend()
            service.watch_engines()
            now = time.monotonic()
            if now - released > RELEASE_SECONDS and not any(model.busy for model in service.pool.models.values()):
                # Long bodies leave memory behind that is not given back by itself; it takes a moment, so no one must wait.
                await asyncio.to_thread(release_memory)
                released = now
        except Exception:
            # One failure is not the end of the watch.
            traceback.print_exc()


def read_keys(path: Path) -> list[str]:
    """Keys of a file, one per line."""
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
