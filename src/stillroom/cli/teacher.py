"""`stillroom teacher probe`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the group `teacher`."""
    group = typer.Typer(help="Look at a teacher behind an endpoint.", no_args_is_help=True)
    group.callback()(_group)
    group.command()(probe)
    app.add_typer(group, name="teacher")


def _group() -> None:
    """Keep `probe` a command of its own, though it is the only one."""


def probe(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the server, such as http://127.0.0.1:8080.")],
    model: Annotated[str, typer.Option(help="Name of the model there.")],
    tokenizer: Annotated[str, typer.Option(help="Folder or hub name with its tokenizer and config.json.")],
    server: Annotated[
        str, typer.Option(help="auto, llamacpp, vllm, sglang, together, fireworks, mistral or chat.")
    ] = "auto",
    top: Annotated[int, typer.Option(help="Most probable ids to ask for per position.")] = 20,
    key_env: Annotated[str | None, typer.Option(help="Environment variable with the key.")] = None,
    service: Annotated[str | None, typer.Option(help="Who runs the server, unless it is on your own network.")] = None,
    as_json: Json = False,
) -> None:
    """Ask an endpoint what `capture` has to know of it. A fixed text of 64 tokens is scored twice; nothing else is sent."""
    from pydantic import ValidationError

    from stillroom.core.errors import UsageError
    from stillroom.recipe.teacher import EndpointTeacher
    from stillroom.teachers.endpoint.teacher import open_endpoint

    try:
        config = EndpointTeacher.model_validate(
            {
                "base_url": url,
                "model": model,
                "tokenizer": tokenizer,
                "server": server,
                "top": top,
                "key_env": key_env,
                "service": service,
                # The fixed text belongs to no one.
                "sends_text": True,
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(
            f"`{first['loc'][0] if first['loc'] else 'URL'}`: {first['msg'].removeprefix('Value error, ')}.",
            "stillroom teacher probe --help",
        ) from None
    teacher = open_endpoint(config)
    try:
        _, found = teacher.probed()
    finally:
        teacher.close()
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return
    typer.echo(f"server            {found.kind}")
    for key, value in found.server.items():
        typer.echo(f"{key:<17} {value}")
    checked = (
        "the same as the recipe's" if found.tokenizer_checked else "not told by the server; each answer is checked"
    )
    typer.echo(f"tokenizer         {checked}")
    typer.echo(f"ids per position  {found.top}")
    typer.echo(f"not listed        {found.missing_mass:.1%} of the probability")
    same = "the same each time" if found.deterministic else f"{found.fingerprint.noise:.1e} nats apart on average"
    typer.echo(f"two answers       {same}")
    typer.echo(f"can be captured   yes: capture: {{codec: {{kind: observed, k: {found.top}}}}}")
