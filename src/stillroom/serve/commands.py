"""`stillroom chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this room."""
    app.command()(chat)


def chat(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run's folder or a GGUF file.")],
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask this once and leave.")] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told before the conversation.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0, help="0 always takes the most probable token.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    context: Annotated[int, typer.Option(min=64, help="Tokens of context.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Talk to a student. Ctrl-C stops an answer, Ctrl-D ends the conversation."""
    from stillroom.serve.engine import Engine, EngineOptions
    from stillroom.serve.models import open_model

    file = open_model(model)
    interactive = sys.stdin.isatty() and prompt is None
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with Engine(file, EngineOptions(context=context)) as engine:
        if interactive:
            typer.echo(f"{file.name}. Ctrl-C stops an answer, Ctrl-D ends.", err=True)
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


def _say(engine: object, messages: list[dict[str, str]], temperature: float, max_tokens: int, seed: int) -> str:
    """Stream an answer to standard output; returns it."""
    from stillroom.serve.engine import Engine

    assert isinstance(engine, Engine)
    said: list[str] = []
    pieces = engine.stream(messages, temperature=temperature, max_tokens=max_tokens, seed=seed)
    try:
        for piece in pieces:
            said.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
    sys.stdout.write("\n")
    return "".join(said)
