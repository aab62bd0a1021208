"""Models that are served: loading, unloading, slots, the queue."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from stillroom.core.errors import DamagedModel, EngineFailed, StillroomError, UsageError, VerificationFailed
from stillroom.inspection.gguf_header import read_gguf
from stillroom.runtime import transport as local
from stillroom.runtime.engine import Engine, EngineOptions, context_of
from stillroom.runtime.facts import read_facts
from stillroom.serving.models import OpenedModel
from stillroom.serving.queues import FairQueue
from stillroom.serving.turns import Turns
from stillroom.switch.state import Switch

T = TypeVar("T")
RECHECK_SECONDS = 60.0
STATE_SECONDS = 10.0
"""How long a request that was given up waits until a slot's state has been written or read."""
SILENT_SECONDS = 10.0
"""After so long without a word a busy engine is asked whether it goes on."""
ANSWER_SECONDS = 20.0
"""How long it may take to answer that: it does between two steps, each of which reads at most a batch of tokens."""
AT_ONCE_SECONDS = 5.0
"""Keys that asked within this time of each other share an engine's slots."""
KEPT_SHARE = 0.75
"""How much of what a slot holds has to stay of use for a request to take it over."""


SOMEBODY = "?"
"""The owner of a context of which it is not certain whose it is: no one goes on from it."""


class NoRoom(UsageError):
    """The memory limit is reached, and no loaded model is idle."""


class NoModel(UsageError):
    """No model of this name is served."""


@dataclass
class Slot:
    """One place of an engine, for one request at a time.

    Attributes:
        number: Its number in the engine.
        held: The text that its context holds.
        session: The session whose context it holds.
        owner: Whose context it holds; None where it holds none.
        used: When it was last used.
        busy: Whether a request has it.
        holder: Whose request has it, or had it last.
    """

    number: int
    held: str = ""
    session: str | None = None
    owner: str | None = None
    used: float = 0.0
    busy: bool = False
    holder: str = ""


class ServedModel:
    """One model and its engine, which comes and goes.

    Args:
        opened: The model.
        options: How it is run.
        switch: The switch that governs it.
        queue: How many requests may wait.
    """

    def __init__(self, opened: OpenedModel, options: EngineOptions, switch: Switch, queue: int) -> None:
        self.opened = opened
        self.name = opened.name
        self.facts = facts = read_facts(opened.gguf)
        self.embedding = facts.embedding
        self._longest = facts.context
        options = replace(options, context=context_of(options.context, facts.context or None))
        # Texts are embedded whole, one at a time: of texts that share a step, llama.cpp pools some by their ends alone.
        whole = replace(options, embedding=True, parallel=1, batch=options.context, drafter=None)
        self.options = whole if self.embedding else options
        self.switch = switch
        self.engine: Engine | None = None
        self.slots: list[Slot] = []
        self._queue = FairQueue(self._held, self._may_have, queue, f"{queue} requests are waiting already.")
        self.suspect = False
        self.shared = False
        """Whether several keys may ask: then none takes all slots, since an answer may be as long as the context, and of those
        that ask at once each takes its share."""
        self._asked: dict[str, float] = {}
        self._later: asyncio.TimerHandle | None = None
        self.turns = Turns()
        self._plain: dict[str, list[int]] = {}
        self._running: list[str] = []
        self._fatal: set[str] = set()
        self._damaged: tuple[DamagedModel, tuple[int, int, int]] | None = None
        self._heard = time.monotonic()
        self.restarts = 0
        self.used = time.monotonic()
        self.created = int(time.time())
        self.refusal: StillroomError | None = None
        stat = opened.gguf.stat()
        self.digest = opened.identity
        drafting = options.drafter.stat().st_size if options.drafter is not None else 0
        self._vocabulary: int | None = None
        self._bytes = int((stat.st_size + drafting) * 1.3) + (64 << 20)
        self._loading = asyncio.Lock()
        self._starting: asyncio.Task[Engine] | None = None

    def vocabulary(self) -> int:
        """How many tokens its vocabulary has; reads the file once."""
        if self._vocabulary is None:
            tokens = read_gguf(self.opened.gguf).metadata.get("tokenizer.ggml.tokens")
            self._vocabulary = int(tokens["count"]) if isinstance(tokens, dict) else 0
        return self._vocabulary

    @property
    def busy(self) -> int:
        """How many requests are being answered."""
        return sum(slot.busy for slot in self.slots)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def if_too_long(self) -> str:
        """What to do about a text that does not fit the context."""
        if self._longest is None or self.options.context < self._longest:
            return "Shorten it, or serve the model with a larger --context."
        return "Shorten it: the model was made for no longer context."

    @property
    def bytes(self) -> int:
        """Memory of the engine; an estimate until it was loaded once."""
        if self.engine is not None and self.engine.pid:
            import psutil

            with contextlib.suppress(psutil.Error):
                self._bytes = int(psutil.Process(self.engine.pid).memory_info().rss)
        return self._bytes

    async def running(self) -> Engine:
        """The engine, loaded if it is not, and anew if it died.

        Raises:
            SwitchedOff: The switch is off.
            EngineFailed: It does not load.
        """
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._run())
            # Where no one is left who asked, no one is told either that it failed: no word of it on the console.
            self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())
        # The client that asked may go away: the engine that is being loaded must not be lost with it.
        return await asyncio.shield(self._starting)

    async def _run(self) -> Engine:
        async with self._loading:
            if self.refusal is not None:
                raise self.refusal
            self.switch.require_on()
            if self.engine is not None and not self.engine.alive:
                await asyncio.to_thread(self.engine.stop, 0)
                self.engine = None
            if self.engine is None:
                self.require_sound()
                self.engine = await asyncio.to_thread(self._start)
                # A place that is taken stays taken: its request is the one that loads.
                busy = {slot.number for slot in self.slots if slot.busy}
                kept = {slot.number: slot for slot in self.slots if slot.number in busy}
                self.slots = [kept.get(number, Slot(number)) for number in range(self.options.parallel)]
                for slot in self.slots:
                    slot.held, slot.session, slot.owner = "", None, None
                self.heard()
            return self.engine

    def _start(self) -> Engine:
        mark = self._mark()
        engine = Engine(self.opened.gguf, self.options, self.switch)
        try:
            if not self.embedding:
                engine.require_numbers()
        except BaseException as error:
            engine.stop(0)
            if isinstance(error, DamagedModel):
                self._damaged = error, mark
            raise
        return engine

    def require_sound(self) -> None:
        """Refuse a model whose file was found damaged, as long as it is that file: it is not loaded for every request.

        Raises:
            DamagedModel: It is that file.
        """
        if self._damaged is not None and self._damaged[1] == self._mark():
            raise self._damaged[0]

    def _mark(self) -> tuple[int, int, int]:
        """What tells the model's file from another one in its place."""
        found = self.opened.gguf.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    @contextlib.asynccontextmanager
    async def slot(self, text: str, session: str | None = None, owner: str = "") -> AsyncIterator[Slot]:
        """A place for one request; the one whose context the request goes on from, if it is free.

        Raises:
            QueueFull: As many requests of this owner wait as may.
        """
        if not self.slots:
            self.slots = [Slot(number) for number in range(self.options.parallel)]
        self._asked[owner] = time.monotonic()
        self._look_later()
        async with self._queue.turn(owner):
            others = self._asking() - {owner}
            chosen = max((slot for slot in self.slots if not slot.busy), key=_fits(text, session, owner, others))
            chosen.busy, chosen.holder = True, owner
        try:
            yield chosen
        finally:
            chosen.busy = False
            chosen.used = self.used = self._asked[owner] = time.monotonic()
            await self._queue.given_back()

    def _look_later(self) -> None:
        """When somebody has not asked for a while, those who wait may have more slots."""
        if self.shared and self._later is None:
            self._later = asyncio.get_running_loop().call_later(AT_ONCE_SECONDS, self._look)

    def _look(self) -> None:
        self._later = None
        self._looking = asyncio.ensure_future(self._queue.given_back())
        if len(self._queue):
            self._look_later()

    def _held(self) -> Counter[str]:
        """How many slots each owner has."""
        return Counter(slot.holder for slot in self.slots if slot.busy)

    def _may_have(self, owner: str) -> bool:
        """Whether there is a slot for somebody."""
        held, slots = self._held(), len(self.slots)
        most = slots
        if self.shared and slots > 1:
            most = min(slots - 1, -(-slots // len(self._asking() | {owner})))
        return held[owner] < most and held.total() < slots

    def _asking(self) -> set[str]:
        """Who is being answered, or asked a moment ago."""
        held, since = self._held(), time.monotonic() - AT_ONCE_SECONDS
        self._asked = {other: asked for other, asked in self._asked.items() if asked > since or held[other]}
        return set(self._asked)

    async def plain_ids(self, engine: Engine, text: str) -> list[int]:
        """The tokens of a text that would be markup, as the plain text that it is here."""
        if text not in self._plain:
            found: list[int] = []
            # An added token is found in every text, but not across a split.
            for part in (text[:1], text[1:]):
                wanted = {"content": part, "add_special": False, "parse_special": False}
                if part:
                    found += (await local.call(engine.socket, engine.key, "POST", "/tokenize", wanted))["tokens"]
            self._plain[text] = found
        return self._plain[text]

    def begin(self, fingerprint: str) -> None:
        """A request is about to reach the engine."""
        self._running.append(fingerprint)

    def done(self, fingerprint: str) -> None:
        """A request no longer concerns the engine."""
        if fingerprint in self._running:
            self._running.remove(fingerprint)

    async def ended(self, fingerprint: str, engine: Engine | None, reached: bool) -> bool:
        """The engine ended while a request was with it; returns whether the request was alone, and so ended it.

        An engine that somebody else ended says nothing of the request.
        """
        alone = reached and self._running == [fingerprint]
        if alone and engine is not None and await asyncio.to_thread(engine.killed):
            return False
        if alone:
            self._fatal.add(fingerprint)
        return alone

    def require_harmless(self, fingerprint: str) -> None:
        """Refuse a request that ended an engine before.

        Raises:
            EngineFailed: It did.
        """
        if fingerprint in self._fatal:
            raise EngineFailed(f"The runtime process of {self.name} ended over this very request before.", "Change it.")

    def heard(self) -> None:
        """The engine has said something."""
        self._heard = time.monotonic()

    async def watch(self) -> None:
        """Replace an engine that has hung: it runs, says nothing, and does not answer between two of its steps either."""
        engine = self.engine
        if engine is None or not engine.alive or self._loading.locked() or self.embedding:
            return  # a text is embedded in one step, however long that takes
        if time.monotonic() - self._heard < SILENT_SECONDS or not (self._running or self.suspect):
            return
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await local.call(engine.socket, engine.key, "GET", "/slots")
            self.heard()
            self.suspect = False
        except (TimeoutError, local.EngineGone):
            self.suspect = False
            engine.replaced = True
            await self.lost(engine)
        except local.EngineRefused:
            self.heard()

    async def lost(self, engine: Engine | None) -> None:
        """An engine no longer answers: make sure that it has ended, so that the next request gets another."""
        async with self._loading:
            if engine is not None and self.engine is engine:
                self.engine = None
                self.restarts += 1
                await asyncio.to_thread(engine.stop, 0)

    async def unload(self, grace: float = 1.0) -> None:
        """Stop the engine; the next request loads it again."""
        async with self._loading:
            engine, self.engine = self.engine, None
            if engine is not None:
                await asyncio.to_thread(engine.stop, grace)

    def describe(self) -> dict[str, Any]:
        """State, for ``/health``."""
        engine = self.engine
        return {
            "name": self.name,
            "loaded": engine is not None and engine.alive,
            "busy": self.busy,
            "waiting": self.waiting,
            "parallel": self.options.parallel,
            "context": self.options.context,
            "confined": engine.confined if engine is not None else {},
            "bytes": self.bytes if engine is not None else 0,
            "refused": str(self.refusal) if self.refusal is not None else None,
        }


def _fits(
    text: str, session: str | None, owner: str = "", others: Collection[str] = ()
) -> Callable[[Slot], tuple[int, bool, bool, float]]:
    """How well a request goes on from a slot: its own session, then what the slot holds of it, then what no one else who is
    asking (``others``) would go on from, then the oldest.

    A slot counts only where the request keeps most of what it holds: another conversation that merely begins likewise
    goes to a place of its own, or the two would drive each other out at every turn.
    """

    def score(slot: Slot) -> tuple[int, bool, bool, float]:
        mine = slot.owner in (None, owner)
        if session is not None and slot.session == session and mine:
            return (1 << 30, mine, mine, -slot.used)
        same = common(text, slot.held) if mine else 0
        return (
            same if same >= KEPT_SHARE * len(slot.held) else 0,
            slot.owner not in others,
            slot.owner is None,
            -slot.used,
        )

    return score


def common(one: str, other: str) -> int:
    """Length of the common beginning of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


class Pool:
    """All models that are served, within a memory limit.

    Args:
        models: The models.
        memory: Bytes that loaded engines may take together; None sets no limit.
        idle: Seconds after which an unused engine is stopped; None keeps it.
    """

    def __init__(self, models: list[ServedModel], memory: int | None = None, idle: float | None = None) -> None:
        self.models = {model.name: model for model in models}
        if len(self.models) != len(models):
            raise UsageError("Two models have the same name.", "Rename one, or serve them separately.")
        self.memory = memory
        self.idle = idle
        self._making_room = asyncio.Lock()
        self._checked = time.monotonic()

    def model(self, name: str) -> ServedModel:
        """The model of a name; the only one, if none is named.

        Raises:
            NoModel: There is none.
        """
        if not name and len(self.models) == 1:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise NoModel(f"No model {name[:100]!r} is served.", f"Served: {', '.join(self.models)}.")
        return self.models[name]

    async def running(self, model: ServedModel) -> Engine:
        """A model's engine, after memory was freed for it.

        Raises:
            DamagedModel: Its file was found damaged.
            NoRoom: The memory limit is reached and nothing is idle.
        """
        model.require_sound()
        if (model.engine is None or not model.engine.alive) and self.memory is not None:
            async with self._making_room:
                others = [other for other in self.models.values() if other is not model and other.engine is not None]
                for other in sorted(others, key=lambda other: other.used):
                    if sum(one.bytes for one in others if one.engine) + model.bytes <= self.memory:
                        break
                    if not other.busy and not other.waiting:
                        await other.unload()
                if sum(one.bytes for one in others if one.engine) + model.bytes > self.memory:
                    raise NoRoom(
                        f"{model.name} needs about {model.bytes >> 20:,} MiB, and {self.memory >> 20:,} MiB is the limit "
                        "for all models together.",
                        "Ask again when another model is idle, or raise --memory.",
                    )
                return await model.running()
        return await model.running()

    async def tend(self) -> None:
        """One look at everything: stop what is idle or may no longer run."""
        recheck = time.monotonic() - self._checked > RECHECK_SECONDS
        if recheck:
            self._checked = time.monotonic()
        for model in self.models.values():
            if recheck:
                await self._recheck(model)
            idle = self.idle is not None and time.monotonic() - model.used > self.idle
            if idle and model.engine is not None and not model.busy and not model.waiting:
                await model.unload()

    async def _recheck(self, model: ServedModel) -> None:
        """Ask again whether a model may run. What cannot be told (a full disk, a memory that cannot be read) counts as no.

        One that was refused is asked about again, too: the switch is turned on, a publisher renews late, or takes a revocation
        back.
        """
        try:
            await asyncio.to_thread(model.opened.recheck)
            model.refusal = None
        except StillroomError as error:
            model.refusal = error
        except Exception as error:
            said = str(error) or type(error).__name__
            model.refusal = VerificationFailed(
                f"{model.name} cannot be checked again: {said}.", "Mend that; it is tried again every minute."
            )
        if model.refusal is not None:
            await model.unload()

    async def stop(self, grace: bool = True) -> None:
        """Stop every engine."""
        for model in self.models.values():
            await model.unload(1.0 if grace else 0)

    def close(self) -> None:
        """Stop every engine and give up what was opened."""
        for model in self.models.values():
            if model.engine is not None:
                model.engine.stop()
            model.opened.close()


async def save_slot(engine: Engine, slot: Slot) -> bytes | None:
    """An engine's state of a slot; None where it is not available."""
    path = _state_file(engine, slot)

    async def work() -> bytes | None:
        try:
            wanted = {"filename": path.name}
            await local.call(engine.socket, engine.key, "POST", f"/slots/{slot.number}?action=save", wanted)
            return await asyncio.to_thread(path.read_bytes)
        except (local.EngineGone, local.EngineRefused, OSError):
            return None
        finally:
            path.unlink(missing_ok=True)

    return await _to_its_end(work())


async def restore_slot(engine: Engine, slot: Slot, state: bytes) -> bool:
    """Put a state back into a slot; False where the engine does not take it."""
    path = _state_file(engine, slot)
    # A request that is given up in the middle leaves a slot of which it is not certain what it holds.
    slot.held, slot.session, slot.owner = "", None, SOMEBODY

    async def work() -> bool:
        try:
            await asyncio.to_thread(path.write_bytes, state)
            wanted = {"filename": path.name}
            await local.call(engine.socket, engine.key, "POST", f"/slots/{slot.number}?action=restore", wanted)
            return True
        except (local.EngineRefused, OSError):
            return False
        finally:
            path.unlink(missing_ok=True)

    return await _to_its_end(work())


def _state_file(engine: Engine, slot: Slot) -> Path:
    """A file of one request's own: what one leaves behind half-written is no other's."""
    path: Path = engine.folder / f"{slot.number}-{secrets.token_hex(8)}.state"
    return path


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that is not left in the middle: no conversation stays in a file, and its slot is not given back."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(TimeoutError, Exception):
            async with asyncio.timeout(STATE_SECONDS):
                await asyncio.shield(task)
        task.cancel()
        raise
