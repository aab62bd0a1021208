"""`stillroom chat` and `stillroom serve`."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.core.plain import shown

if TYPE_CHECKING:
    from stillroom.runtime.engine import Engine
    from stillroom.serving.ask import Chat
    from stillroom.switch.engines import Registration

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
    context: Annotated[int, typer.Option(min=64, help="Tokens of context, rounded up to a multiple of 256.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Talk to a student. Ctrl-C stops an answer, Ctrl-D ends the conversation, /help says what else there is."""
    from stillroom.core.errors import EngineFailed, UsageError
    from stillroom.serving.ask import Chat
    from stillroom.switch.engines import Registration

    interactive = sys.stdin.isatty() and prompt is None
    settings = _Settings(temperature, max_tokens, seed)
    with (
        Chat(model, system=system, context=context) as talk,
        # A line of its own: `off` waits until this process writes nothing more.
        contextlib.closing(Registration(talk.engine.switch.places, "server", "chat")) as line,
    ):
        if interactive:
            typer.echo(f"{talk.name} ({talk.passport()['signature']['state']}).", err=True)
            _show_provenance(talk)
            _show_confinement(talk.engine)
            typer.echo("Ctrl-C stops an answer, Ctrl-D ends, /help says what else there is.", err=True)
        while True:
            asked = prompt if prompt is not None else _ask(interactive)
            if asked is None:
                return
            if interactive and asked.startswith("/"):
                if not settings.command(talk, asked.strip()):
                    return
            elif asked.strip():
                try:
                    _say(talk, asked, settings, line)
                except (EngineFailed, UsageError) as error:
                    # A full context, most often: the conversation is still there.
                    if not interactive or not talk.engine.alive:
                        raise
                    typer.echo(f"{shown(str(error))}\n/clear begins anew.", err=True)
            if prompt is not None:
                return


def serve(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Packages, runs' folders or GGUF files.")],
    host: Annotated[str, typer.Option(help="Address to listen on. Another than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8080,
    key_file: Annotated[
        Path | None, typer.Option(help="A file of keys, one per line, of which clients need one.")
    ] = None,
    allow_host: Annotated[list[str] | None, typer.Option(help="A further name by which clients may call.")] = None,
    context: Annotated[
        int,
        typer.Option(
            min=64,
            help="Tokens of context, for each request, rounded up to a multiple of 256: the size of its KV cache.",
        ),
    ] = 4096,
    parallel: Annotated[int, typer.Option(min=1, max=64, help="Requests answered at once, by each model.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Requests that may wait, for each model.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of each model; default: cores but one.")] = None,
    batch: Annotated[int, typer.Option(min=32, help="Tokens per prefill step: the engine's batch size.")] = 256,
    memory: Annotated[int | None, typer.Option(min=64, help="MiB that all models together may take.")] = None,
    idle: Annotated[float | None, typer.Option(min=1, help="Seconds after which an unused model is unloaded.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Longest time a request may take, in seconds.")] = 600,
    mark: Annotated[
        Path | None, typer.Option(metavar="KEY", help="Mark every answer with this key (`stillroom guard key new`).")
    ] = None,
    mark_delta: Annotated[
        float, typer.Option(min=0.1, max=10.0, help="Strength of the mark: difference in logits between words.")
    ] = 1.0,
    proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address of a proxy whose X-Forwarded-For is believed; none is by default."),
    ] = None,
    request_log: Annotated[
        Path | None, typer.Option(help="Log requests to this file, without texts, for `guard intake`; none without it.")
    ] = None,
    request_log_texts: Annotated[bool, typer.Option(help="Log the texts of requests too.")] = False,
    drafter: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="A small model of the same vocabulary that drafts what the served one accepts."
        ),
    ] = None,
    drafts: Annotated[int, typer.Option(min=1, max=64, help="Tokens that the drafter drafts at a time.")] = 4,
) -> None:
    """Serve models: the OpenAI API, a chat page, and the switch. Ctrl-C ends it."""
    from stillroom.core.errors import UsageError
    from stillroom.core.extras import require
    from stillroom.core.outputs import require_apart

    require("serve", "The server needs packages that are not installed: {}.")
    from stillroom.serving.app import read_keys
    from stillroom.serving.running import serve_models

    if key_file is not None and not key_file.is_file():
        raise UsageError(f"{key_file} is not a file of keys.", "Write one key a line into it.")
    if request_log_texts and request_log is None:
        raise UsageError("--request-log-texts without --request-log.", "Name the file: --request-log FILE.")
    if request_log is not None:
        require_apart(request_log, [*(path for path in models if path.is_file()), key_file, mark, drafter])
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
        proxies=proxy or [],
        mark=mark,
        mark_delta=mark_delta,
        request_log=request_log,
        request_log_texts=request_log_texts,
        drafter=drafter,
        drafts=drafts,
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


HELP = """/set temperature|max_tokens|seed VALUE   how answers are written from here on
/set system TEXT                         what the model is told first; begins anew
/clear                                   begin anew
/provenance                              where the model comes from, and its users' obligations
/bye                                     end
Answers are generated text, and can be wrong."""


@dataclass
class _Settings:
    """How answers are written; changed by commands in the conversation."""

    temperature: float
    max_tokens: int
    seed: int

    def command(self, talk: Chat, line: str) -> bool:
        """Do what a line says that begins with a slash; False ends the conversation."""
        word, _, rest = line.partition(" ")
        if word in ("/bye", "/exit", "/quit"):
            return False
        if word == "/clear":
            talk.clear()
            typer.echo("Begun anew.", err=True)
        elif word == "/provenance":
            _show_provenance(talk)
        elif word == "/set":
            name, _, value = rest.strip().partition(" ")
            typer.echo(shown(self._set(talk, name, value.strip()), one_line=True), err=True)
        else:
            typer.echo(HELP if word in ("/help", "/?") else f"There is no {word}.\n{HELP}", err=True)
        return True

    def _set(self, talk: Chat, name: str, value: str) -> str:
        if name == "system":
            talk.clear(value)
            return "Begun anew."
        least = {"temperature": 0.0, "max_tokens": 1, "seed": 0}
        most = {"temperature": 5.0, "max_tokens": 1 << 20, "seed": (1 << 32) - 1}
        if name not in least:
            wrong = f"There is no setting {name}. " if name else ""
            return f"{wrong}temperature {self.temperature:g}, max_tokens {self.max_tokens}, seed {self.seed}"
        try:
            number = float(value) if name == "temperature" else int(value)
        except ValueError:
            return f"{name}: a number is expected."
        if not least[name] <= number <= most[name]:
            return f"{name}: between {least[name]} and {most[name]}."
        setattr(self, name, number)
        return f"{name} {number:g}"


def _say(talk: Chat, asked: str, settings: _Settings, line: Registration) -> None:
    """Stream an answer to standard output.

    Raises:
        SwitchedOff: The switch was turned off meanwhile; what came after that was not written.
    """
    tokens = talk.stream(asked, temperature=settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed)
    try:
        for text in tokens:
            with line.delivering():
                talk.engine.switch.require_on("chat")
                sys.stdout.write(shown(text))
                sys.stdout.flush()
    except KeyboardInterrupt:
        tokens.close()
    sys.stdout.write("\n")


def _show_provenance(talk: Chat) -> None:
    """Say in words where the model comes from, and its users' obligations."""
    from stillroom.serving.passport import in_words

    for sentence in in_words(talk.passport()):
        typer.echo(f"  {shown(sentence, one_line=True)}", err=True)


def _show_confinement(engine: Engine) -> None:
    """Say plainly what the model's process cannot do."""
    for measure, state in engine.confined.items():
        typer.echo(f"  {measure}: {state}", err=True)
