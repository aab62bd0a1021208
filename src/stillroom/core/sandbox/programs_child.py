"""The children of the sandbox: each gives up its rights, then runs the program on its standard input.

One child runs what a model wrote and answers calls of its functions; another, where nothing of the model's runs, makes
those calls and evaluates what comes back. Between them go lines of JSON that can hold nothing but plain data.

They are started by :func:`stillroom.core.sandbox.child.isolated`, and import nothing of Stillroom but the policy.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import IO, Any, NoReturn

from stillroom.core.sandbox.confine import confine, standard_library
from stillroom.core.sandbox.policies import NO_EFFECTS

SERVE = "serve"
NOT_PLAIN = b"not plain data: "
"""What the checking process sends, with a type's name, where a test hands over what cannot be sent."""

_SEQUENCES: tuple[tuple[Any, str], ...] = ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f"))


def main() -> None:
    """Give up rights, run the program, and say the word; or answer calls.

    Arguments: CPU seconds, bytes of memory; then nothing (a program by itself), ``serve`` (a model's program), or
    the two descriptors (from it, to it) over which the checking process talks to one.
    """
    import resource

    seconds, memory, *how = float(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    serves = how == [SERVE]
    if serves:
        requests = os.fdopen(os.dup(0), encoding="utf-8")
        word, source = "", json.loads(requests.readline())
    else:
        word, _, source = sys.stdin.buffer.read().decode().partition("\n")
    whole = max(1, int(seconds + 0.999))
    # Behind the soft limit comes SIGXCPU, by which an endless program is known; at the hard one it would be SIGKILL at once.
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 1))
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    # The program's output goes nowhere.
    out = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.setrecursionlimit(5000)
    report = confine(standard_library(), None, None, 64, policy=NO_EFFECTS, namespace=False)
    if report["seccomp"] != "active":
        os.write(out, b"the sandbox could not be closed")
        os._exit(1)
    # The program finds what any program finds: the standard library.
    for name in [name for name in sys.modules if name.partition(".")[0] == "stillroom"]:
        del sys.modules[name]
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        if serves:
            exec(compile(source, "program", "exec"), names)  # noqa: S102 - that is what it is for
            _serve(names, requests, os.fdopen(out, "w", encoding="utf-8"))
        elif how:
            before, source = json.loads(source)
            exec(compile(before, "before", "exec"), names)  # noqa: S102
            there = _There(os.fdopen(int(how[0]), encoding="utf-8"), os.fdopen(int(how[1]), "w", encoding="utf-8"))
            names = there.names() | names
        exec(compile(source, "program", "exec"), names)  # noqa: S102
    except _NotPlain as error:
        os.write(out, NOT_PLAIN + str(error).encode())
        os._exit(1)
    except BaseException:
        os._exit(1)
    os.write(out, word.encode())
    os._exit(0)


class _NotPlain(BaseException):
    """A test hands over something that cannot be sent. No `except Exception` of a test catches it."""


def _encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """A value as JSON; ``other`` says what stands for one that is not plain data."""
    kind = type(value)
    if value is None or kind in (bool, float, str) or (kind is int and abs(value) < 1 << 63):
        return value
    if isinstance(value, int):
        return ["i", hex(int(value))]
    if isinstance(value, str | float):
        return str(value) if isinstance(value, str) else float(value)
    if isinstance(value, bytes | bytearray):
        return ["b" if isinstance(value, bytes) else "a", bytes(value).hex()]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if isinstance(value, dict):
        return ["d", *([_encode(key, other), _encode(held, other)] for key, held in value.items())]
    for each, letter in _SEQUENCES:
        if isinstance(value, each):
            return [letter, *(_encode(held, other) for held in value)]
    exact = {("decimal", "Decimal"): "D", ("fractions", "Fraction"): "F"}.get((kind.__module__, kind.__name__))
    return [exact, str(value)] if exact else other(value)


def _decode(value: Any, other: Callable[[Any], Any]) -> Any:
    """The value of a JSON; ``other`` makes what ``o`` stands for."""
    if not isinstance(value, list):
        return value
    letter, *rest = value
    for kind, mine in _SEQUENCES:
        if letter == mine:
            return kind(_decode(held, other) for held in rest)
    if letter == "d":
        return {_decode(key, other): _decode(held, other) for key, held in rest}
    if letter in ("D", "F"):
        module, name = {"D": ("decimal", "Decimal"), "F": ("fractions", "Fraction")}[letter]
        return getattr(importlib.import_module(module), name)(rest[0])
    if letter in ("b", "a"):
        return (bytes if letter == "b" else bytearray).fromhex(rest[0])
    if letter == "i":
        return int(rest[0], 16)
    if letter == "c":
        return complex(*rest)
    return other(rest[0])


def _serve(names: dict[str, Any], requests: IO[str], replies: IO[str]) -> NoReturn:
    """Tell a program's names, then do what is asked with its objects until no one asks any more."""
    objects: list[Any] = []

    def keep(value: Any) -> Any:
        objects.append(value)
        return ["o", len(objects) - 1]

    def say(message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    say(
        {
            name: ["m", value.__name__] if isinstance(value, ModuleType) else _encode(value, keep)
            for name, value in list(names.items())
            if not name.startswith("__")
        }
    )
    does: dict[str, Callable[..., Any]] = {
        "call": lambda thing, *given, **named: thing(*given, **named),
        "get": getattr,
        "set": setattr,
        "item": lambda thing, key: thing[key],
        "put": lambda thing, key, value: thing.__setitem__(key, value),
        "in": lambda thing, value: value in thing,
        "len": len,
        "iter": iter,
        "next": next,
        "str": str,
    }
    for line in requests:
        what, at, given, named = json.loads(line)
        arguments = [_decode(each, objects.__getitem__) for each in given]
        keywords = {name: _decode(each, objects.__getitem__) for name, each in named.items()}
        try:
            value = does[what](objects[at], *arguments, **keywords)
            say(["value", _encode(value, keep), [_encode(each, keep) for each in arguments]])
        except Exception as error:
            say(["error", [each.__name__ for each in type(error).__mro__], str(error)])
    os._exit(0)


class _There:
    """The checking process's side: asks the process of a model's program, and believes of it only what is plain data."""

    def __init__(self, replies: IO[str], requests: IO[str]) -> None:
        self._replies, self._requests = replies, requests

    def names(self) -> dict[str, Any]:
        """What the program has defined. Names of Python's own functions stay Python's: a test relies on them."""
        found: dict[str, Any] = {}
        for name, value in self._hear().items():
            if hasattr(builtins, name):
                continue
            if isinstance(value, list) and value and value[0] == "m":
                if value[1].partition(".")[0] in sys.stdlib_module_names:
                    found[name] = importlib.import_module(value[1])
            else:
                found[name] = _decode(value, self._thing)
        return found

    def _thing(self, number: int) -> _Thing:
        return _Thing(self, number)

    def _hear(self) -> Any:
        line = self._replies.readline()
        if not line:
            raise SystemExit("the program has ended")
        return json.loads(line)

    def ask(self, what: str, number: int, *given: Any, **named: Any) -> Any:
        """Have something done with an object there; raises what it raised, as a built-in exception."""

        def other(value: Any) -> Any:
            if type(value) is _Thing:
                return ["o", object.__getattribute__(value, "_number")]
            raise _NotPlain(type(value).__name__)

        sent = [_encode(each, other) for each in given]
        message = [what, number, sent, {name: _encode(each, other) for name, each in named.items()}]
        self._requests.write(json.dumps(message) + "\n")
        self._requests.flush()
        said, *rest = self._hear()
        if said == "error":
            raise _exception(rest[0], str(rest[1]))
        value, after = rest
        # What a function changes in its arguments, a test sees.
        for mine, before, theirs in zip(given, sent, after, strict=True):
            if theirs != before and isinstance(mine, list | dict | set | bytearray):
                changed = _decode(theirs, self._thing)
                if isinstance(mine, list | bytearray):
                    mine[:] = changed
                else:
                    mine.clear()
                    mine.update(changed)
        return _decode(value, self._thing)


def _exception(kinds: list[str], message: str) -> Exception:
    """The nearest of Python's own exceptions that is made of a message."""
    for name in kinds:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):
                return kind(message)
    return Exception(message)


class _Thing:
    """A function or object of the program. It equals nothing but itself here: what is equal, the program has no say in."""

    def __init__(self, there: _There, number: int) -> None:
        object.__setattr__(self, "_there", there)
        object.__setattr__(self, "_number", number)

    def _ask(self, what: str, *given: Any, **named: Any) -> Any:
        there = object.__getattribute__(self, "_there")
        return there.ask(what, object.__getattribute__(self, "_number"), *given, **named)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._ask("call", *given, **named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._ask("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("set", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("put", key, value)

    def __contains__(self, value: Any) -> bool:
        return bool(self._ask("in", value))

    def __len__(self) -> int:
        return int(self._ask("len"))

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        return self._ask("next")

    def __str__(self) -> str:
        return str(self._ask("str"))
