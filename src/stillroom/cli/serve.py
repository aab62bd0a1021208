"""`stillroom chat` and `stillroom serve`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.core.plain import shown

if TYPE_CHECKING:
    from stillroom.runtime.engine import Engine
    from stillroom.serving.ask import Chat

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="A package, a run's folder or a GGUF file.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
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
    from stillroom.serving.ask import Chat

    interactive = sys.stdin.isatty() and prompt is None
    with Chat(model, system=system, context=context) as talk:
        if interactive:
            typer.echo(f"{talk.name} ({talk.passport()['signature']['state']}).", err=True)
            _show_confinement(talk.engine)
            typer.echo("Ctrl-C stops an answer, Ctrl-D ends.", err=True)
        while True:
            asked = prompt if prompt is not None else _ask(interactive)
            if asked is None:
                return
            if asked.strip():
                _say(talk, asked, temperature, max_tokens, seed)
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
    from stillroom.core.extras import require

    require("serve", "The server needs packages that are not installed: {}.")
    from stillroom.serving.app import read_keys
    from stillroom.serving.running import serve_models

    if key_file is not None and not key_file.is_file():
        raise UsageError(f"{key_file} is not a file of keys.", "Write one key a line into it.")
    serve_models(
        models,
        host,
        port,
        keys=read_keys(key_file) if key_file is not None else [],
        allow_hosts=allow_host or [],
        context=context,
        parallel=parallel,
        queue=queue,
        threads=threads,
        batch=batch,
        memory_bytes=memory << 20 if memory is not None else None,
        idle_seconds=idle,
        timeout=timeout,
    )


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


def _say(talk: Chat, asked: str, temperature: float, max_tokens: int, seed: int) -> None:
    """Stream an answer to standard output."""
    tokens = talk.stream(asked, temperature=temperature, max_tokens=max_tokens, seed=seed)
    try:
        for text in tokens:
            sys.stdout.write(shown(text))
            sys.stdout.flush()
    except KeyboardInterrupt:
        tokens.close()
    sys.stdout.write("\n")


def _show_confinement(engine: Engine) -> None:
    """Say plainly what the model's process cannot do."""
    for measure, state in engine.confined.items():
        typer.echo(f"  {measure}: {state}", err=True)
