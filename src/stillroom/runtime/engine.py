"""A GGUF model in a child process of its own, by llama.cpp (xllamacpp).

The parent never holds the model. Whatever happens in the child, the parent gets an answer or an error, and it can end
the child at any time. The child has no network as far as the system lets an ordinary user go (:mod:`.confine`); the two
talk over a local socket in a private folder, in the words of the OpenAI API.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from stillroom.core.errors import DamagedModel, EngineFailed
from stillroom.core.waiting import readable
from stillroom.runtime.worker import SOCKET
from stillroom.switch.engines import WORKER, Registration
from stillroom.switch.state import Switch

START_SECONDS = 120.0
STOP_SECONDS = 1.0
MALLOC = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""For glibc: memory that a long request took goes back to the system once it is answered; and the KV cache takes huge pages,
since a process ends when the last of its pages was given back: 460 MB took 280 ms in small ones on a busy machine, and 60 ms in
huge ones."""


@dataclass(frozen=True)
class EngineOptions:
    """How a model is run.

    Attributes:
        context: Tokens of context, for each parallel request; llama.cpp takes as many as :func:`context_of` says.
        threads: Threads; None takes the CPU's cores but one, at most eight.
        batch: Tokens a prefill step; small steps make stopping quick.
        parallel: Requests answered at once.
        embedding: Run it as a model of embeddings.
        exact: Round no more than the file does: the KV cache in float32, no flash attention, no repacked matrices. For
            comparisons with PyTorch, which are then the same on every CPU; it is slower.
        memory: Most private memory of the child, in bytes; None is 4 GiB and three times the file.
        confine: Give up network, files and signals in the child.
        drafter: A smaller model's GGUF file that drafts for this one (speculative decoding); it has to have its vocabulary
            (:func:`stillroom.runtime.facts.require_drafter`).
        drafts: Tokens that it drafts at a time, at most.
    """

    context: int = 2048
    threads: int | None = None
    batch: int = 256
    parallel: int = 1
    embedding: bool = False
    exact: bool = False
    memory: int | None = None
    confine: bool = True
    drafter: Path | None = None
    drafts: int = 4


CONTEXT_STEP = 256
"""llama.cpp's context is a multiple of this."""


def context_of(asked: int, longest: int | None) -> int:
    """Tokens that fit an engine's context.

    Args:
        asked: Those that were asked for.
        longest: Those that the model was made for, beyond which llama.cpp does not go; None where its file does not tell.
    """
    whole = -(-asked // CONTEXT_STEP) * CONTEXT_STEP
    return whole if longest is None else min(whole, longest)


class Engine:
    """One model in one child process. Use it as a context manager, or call :meth:`stop`.

    Args:
        path: A GGUF file.
        options: How it is run.
        switch: The switch that governs it; None is the user's.

    Raises:
        EngineFailed: The child did not start, or the file cannot be loaded.
        SwitchedOff: The owner's switch is off.
    """

    def __init__(self, path: Path, options: EngineOptions | None = None, switch: Switch | None = None) -> None:
        self.path = path
        self.options = options or EngineOptions()
        self.switch = switch or Switch()
        self.key = secrets.token_hex(32)
        self.confined: dict[str, str] = {}
        self._registration: Registration | None = None
        self._connection: _LocalConnection | None = None
        self._used = 0.0
        self.switch.require_on()
        self.folder = _private_folder()
        try:
            self._process = self._spawn()
        except OSError as error:
            # Too many open files, too little memory: nothing is left behind of what did not start.
            _remove(self.folder)
            raise EngineFailed(
                f"{self.path}: the runtime process cannot be started: {error.strerror or error}.",
                "Close other programs, or raise the limits of this user.",
            ) from None
        try:
            self._begin()
        except BaseException:
            self.stop(grace=0)
            raise

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """Process number of the child."""
        return self._process.pid

    @property
    def socket(self) -> Path:
        """Where the child listens."""
        return self.folder / SOCKET

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._process.poll() is None

    replaced: bool = False
    """Whether it was given up because it had hung."""

    def killed(self, seconds: float = 0.5) -> bool:
        """Whether somebody ended the child, and not what it was doing.

        Args:
            seconds: How long to wait for its end at most.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return not self.replaced and self._process.poll() in (-signal.SIGKILL, -signal.SIGTERM)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """One completion of a prompt, in the words of the OpenAI API; not streamed."""
        return self.call("POST", "/v1/completions", body)

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """One chat completion, in the words of the OpenAI API; not streamed."""
        return self.call("POST", "/v1/chat/completions", body)

    def stream(self, messages: list[dict[str, str]], **options: Any) -> Iterator[str]:
        """A chat's answer, piece by piece, with what the model thinks where it does. Closing the iterator stops the model at
        its next token.
        """
        # Reasoning that is told apart would be lost here: it comes as it is written.
        body = {"messages": messages, "reasoning_format": "none", **options}
        return self._pieces("/v1/chat/completions", body)

    def stream_prompt(self, prompt: str | list[Any], **options: Any) -> Iterator[str]:
        """What follows a prompt, piece by piece: a text, or texts and ids of tokens in a row. Closing as above."""
        return self._pieces("/v1/completions", {"prompt": prompt, **options})

    def _pieces(self, path: str, body: dict[str, Any]) -> Iterator[str]:
        # A connection of its own: closing it is what stops the model.
        connection = self._connect()
        try:
            response = self._request(connection, "POST", path, {**body, "stream": True})
            for line in self._lines(response):
                if not line.startswith(b"data: ") or line == b"data: [DONE]":
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise _refused(event)
                for choice in event.get("choices", ()):
                    text = choice.get("delta", {}).get("content") or choice.get("text")
                    if text:
                        self.switch.require_on()
                        yield text
        finally:
            connection.close()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Any request to the child that answers with JSON.

        Raises:
            EngineFailed: The child refused it, or died.
            SwitchedOff: The switch was turned off meanwhile.
        """
        # llama.cpp closes a connection that was silent for five seconds.
        if self._connection is not None and time.monotonic() - self._used > 3:
            self._connection.close()
        self._connection = self._connection or self._connect()
        response = self._request(self._connection, method, path, body)
        try:
            data = response.read()
        except (OSError, http.client.HTTPException):
            raise self.died() from None
        self.switch.require_on()
        self._used = time.monotonic()
        value: dict[str, Any] = json.loads(data)
        return value

    def require_numbers(self) -> None:
        """Refuse a model that predicts no numbers, by one token: weights that are not finite make every prediction NaN.

        Raises:
            DamagedModel: It is one.
            EngineFailed: It died of it, or gives no token.
        """
        body = {"prompt": "a", "max_tokens": 1, "temperature": 0, "logprobs": 1}
        # One that hangs in its first token is as good as not loaded.
        connection = self._connect(START_SECONDS)
        try:
            answer = json.loads(self._request(connection, "POST", "/v1/completions", body).read())
        except (OSError, http.client.HTTPException):
            raise self.died() from None
        finally:
            connection.close()
        for choice in answer.get("choices", ()):
            self.require_finite((choice.get("logprobs") or {}).get("content") or [])

    def require_finite(self, entries: Sequence[dict[str, Any]]) -> None:
        """Refuse log-probabilities that are not numbers; NaN comes as null.

        Args:
            entries: Of tokens, as a completion has them.

        Raises:
            DamagedModel: One is none.
        """
        if any(each.get("logprob") is None for entry in entries for each in (entry, *entry.get("top_logprobs", []))):
            raise DamagedModel(
                f"{self.path}: the model's log-probabilities are not finite (NaN or infinite): its weights are damaged.",
                "Get the file again, or export the model anew; `stillroom inspect` names the weights.",
            )

    def stop(self, grace: float = STOP_SECONDS) -> None:
        """End the child: first asked, then killed."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        if self._registration is not None:
            self._registration.close()
            self._registration = None
        _remove(self.folder)

    def died(self) -> Exception:
        """What to raise when the child has gone: the switch, or a failure."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.switch.require_on()
        if self.alive:
            return EngineFailed(
                f"{self.path}: the runtime does not answer.",
                "Try again; the machine may be overloaded, or the file damaged.",
            )
        return EngineFailed(
            f"{self.path}: the runtime process ended (exit code {self._process.poll()}).",
            "The file may be damaged or memory too small; `stillroom chat` with the F16 file tells which.",
        )

    def _spawn(self) -> subprocess.Popen[bytes]:
        package = str(Path(__file__).resolve().parents[2])
        kept = {
            name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ
        }
        return subprocess.Popen(
            [sys.executable, "-P", "-m", WORKER, str(self.switch.places.state)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,
            # Nothing of the parent's environment is the model's business: it may hold keys.
            env={**kept, **MALLOC, "PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )

    def _begin(self) -> None:
        self._registration = Registration(self.switch.places, "engine", self.path.name, self._process.pid)
        # Written down first, looked at second: off does it the other way round, and so misses no one.
        self.switch.require_on()
        options = self.options
        sizes = self.path.stat().st_size + (options.drafter.stat().st_size if options.drafter is not None else 0)
        memory = options.memory or (4 << 30) + 3 * sizes
        settings = {
            **asdict(options),
            "threads": options.threads or default_threads(),
            "memory": memory,
            "drafter": None if options.drafter is None else str(options.drafter.absolute()),
            "folder": str(self.folder),
            "model": str(self.path.absolute()),
            "key": self.key,
        }
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(OSError):
            stdin.write(json.dumps(settings).encode() + b"\n")
            stdin.flush()
        message = _message(stdout, START_SECONDS)
        if message is None:
            raise self.died()
        if not message.get("ready"):
            self.switch.require_on()
            raise EngineFailed(
                f"{self.path}: the runtime could not load the model: {message.get('failed', 'it said nothing')}",
                "Check that the file is a whole GGUF.",
            )
        self.confined = message["confined"]

    def _connect(self, timeout: float | None = None) -> _LocalConnection:
        return _LocalConnection(self.socket, timeout)

    def _request(
        self, connection: _LocalConnection, method: str, path: str, body: dict[str, Any] | None
    ) -> http.client.HTTPResponse:
        self.switch.require_on()
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refused(_json(response.read()))
        except (OSError, http.client.HTTPException):
            connection.close()
            raise self.died() from None
        return response

    def _lines(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        try:
            while line := response.readline():
                yield line.strip()
        except (OSError, http.client.HTTPException):
            raise self.died() from None
        if not self.alive:
            raise self.died()


def default_threads() -> int:
    """Cores but one, at most eight: a busy core slows llama.cpp more than a missing one."""
    return max(1, min(8, (os.cpu_count() or 2) - 1))


class _LocalConnection(http.client.HTTPConnection):
    """HTTP over a local socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("engine", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _private_folder() -> Path:
    """A folder that only this user can enter, in memory where there is such a place: prompts do not reach the disk."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder made in it has mode 0700 and a random name
    place = memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())
    sweep(place)
    while True:
        made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        # Somebody may be sweeping just now, and have found the lock before it was taken.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            _LOCKS[made] = _lock(made / OWNER, os.O_CREAT)
            if (made / OWNER).exists():
                return made
            os.close(_LOCKS.pop(made))


PREFIX, OWNER = "stillroom-", "owner.lock"
OLD_SECONDS = 600.0
"""A folder without a lock was just made, or is of Stillroom 0.1.0: then it is removed where no one listens on its socket."""
_LOCKS: dict[Path, int] = {}
"""The locks of this process's folders. The system lets go of them when the process ends, however it ends."""


def sweep(place: Path) -> list[Path]:
    """Remove the folders of engines whose process was killed: they may hold a conversation in plain text.

    Only this user's, and only where no one holds the lock; a process number would say nothing of another container.
    """
    removed = []
    for folder in place.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or folder in _LOCKS:
                continue
            if (folder / OWNER).exists():
                os.close(_lock(folder / OWNER))
            elif time.time() - found.st_mtime < OLD_SECONDS or not _refuses(folder / SOCKET):
                continue
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _lock(path: Path, create: int = 0) -> int:
    """Hold a folder's lock; OSError where another process does."""
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | create, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuses(path: Path) -> bool:
    """Whether there is a socket on which no one listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if (lock := _LOCKS.pop(folder, None)) is not None:
        os.close(lock)


def _message(stream: IO[bytes], seconds: float) -> dict[str, Any] | None:
    """One line of JSON from the child; None if it ended or said nothing in time."""
    until = time.monotonic() + seconds
    ready = readable(stream.fileno(), seconds)
    line = b""
    while ready and not line.endswith(b"\n") and time.monotonic() < until:
        part = os.read(stream.fileno(), 1 << 16)
        if not part:
            break
        line += part
    return _json(line) if line.endswith(b"\n") else None


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"error": {"message": data[:200].decode(errors="replace")}}


def _refused(value: dict[str, Any]) -> EngineFailed:
    error = value.get("error", value)
    reason = str(error.get("message", error)) if isinstance(error, dict) else str(error)
    return EngineFailed(f"The model did not answer: {reason}", "Shorten the prompt, or start anew.")
