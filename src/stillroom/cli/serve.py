"""`stillroom chat` and `stillroom serve`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from stillroom.runtime.engine import Engine

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A package, a run's folder or a GGUF file.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this room."""
    app.command()(chat)
    app.command()(serve)


def chat(
    model: ModelPath,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask this once and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 always takes the most probable token.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    context: Annotated[int, typer.Option(min=64, help="Tokens of context.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Talk to a student. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    from stillroom.runtime.engine import Engine, EngineOptions
    from stillroom.serving.models import open_model
    from stillroom.switch import require_on

    require_on("chat")
    interactive = sys.stdin.isatty() and prompt is None
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with open_model(model) as opened, Engine(opened.gguf, EngineOptions(context=context)) as engine:
        if interactive:
            typer.echo(f"{opened.name} ({opened.passport()['signature']['state']}).", err=True)
            _show_confinement(engine)
            typer.echo("Ctrl-C stops an answer, Ctrl-D ends.", err=True)
        while True:
            asked = prompt if prompt is not None else _ask(interactive)
            if asked is None:
                return
            if asked.strip():
                messages.append({"role": "user", "content": asked})
                said = _say(engine, messages, temperature, max_tokens, seed)
                messages.append({"role": "assistant", "content": said})
            if prompt is not None:
                return


def serve(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Packages, runs' folders or GGUF files.")],
    host: Annotated[str, typer.Option(help="Address to listen on. Another than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    key_file: Annotated[
        Path | None, typer.Option(help="A file of keys, one a line, of which clients need one.")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further name by which clients may call.")] = None,
    context: Annotated[int, typer.Option(min=64, help="Tokens of context, for each request.")] = 4096,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Requests answered at once, by each model.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait, for each model.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each model; default: cores but one.")] = None,
    batch: Annotated[int, typer.Option(min=32, help="Tokens a prefill step.")] = 256,
    memory: Annotated[int | None, typer.Option(min=64, help="MiB that all models together may take.")] = None,
    idle: Annotated[float | None, typer.Option(min=1, help="Seconds after which an unused model is unloaded.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Longest time a request may take, in seconds.")] = 600,
) -> None:
    """Serve models: the OpenAI API, a chat page, and the switch. Ctrl-C ends it."""
    from stillroom.core.errors import UsageError
    from stillroom.runtime.engine import EngineOptions
    from stillroom.serving.app import Limits, Service, read_keys
    from stillroom.serving.guard import require_key
    from stillroom.serving.models import open_model
    from stillroom.serving.pool import Pool, ServedModel
    from stillroom.serving.running import run
    from stillroom.switch import Switch

    switch = Switch()
    switch.require_on()
    if key_file is not None and not key_file.is_file():
        raise UsageError(f"{key_file} is not a file of keys.", "Write one key a line into it.")
    keys = read_keys(key_file) if key_file is not None else []
    require_key(host, keys)
    options = EngineOptions(context=context, threads=threads, batch=batch, parallel=parallel)
    with contextlib.ExitStack() as opened:
        found = [opened.enter_context(open_model(path)) for path in models]
        pool = Pool(
            [ServedModel(model, options, switch, queue) for model in found],
            memory << 20 if memory is not None else None,
            idle,
        )
        opened.callback(pool.close)
        hosts = (*Limits().hosts, host.lower(), *(allow_host or ()))
        run(Service(pool, switch, Limits(seconds=timeout, keys=keys, hosts=hosts)), host, port)


def _ask(interactive: bool) -> str | None:
    """The next line of the user, or None at the end."""
    try:
        return input("> " if interactive else "")
    except EOFError:
        if interactive:
            typer.echo()
        return None
    except KeyboardInterrupt:
        typer.echo()
        return None


def _say(engine: Engine, messages: list[dict[str, str]], temperature: float, max_tokens: int, seed: int) -> str:
    """Stream an answer to standard output; returns it."""
    said: list[str] = []
    pieces = engine.stream(messages, temperature=temperature, max_tokens=max_tokens, seed=seed)
    assert isinstance(pieces, Generator)
    try:
        for piece in pieces:
            said.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()
    sys.stdout.write("\n")
    return "".join(said)


def _show_confinement(engine: Engine) -> None:
    """Say plainly what the model's process cannot do."""
    for measure, state in engine.confined.items():
        typer.echo(f"  {measure}: {state}", err=True)
