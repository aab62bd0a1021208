"""`stillroom ladder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command()(ladder)


def ladder(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, such as runs/quickstart.")],
    types: Annotated[str, typer.Option(help="GGUF types, with commas between; all but F32 without it.")] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Also without the importance matrix.")] = False,
    speed: Annotated[bool, typer.Option(help="Measure decode speed.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Draw no progress.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")] = False,
) -> None:
    """Measure a run's student in every GGUF type: bytes, KL to student and teacher, decode speed."""
    import json

    from stillroom.core.errors import UsageError
    from stillroom.core.gguf_types import GGUF_TYPES
    from stillroom.formats.ladder import ladder as measure
    from stillroom.formats.ladder import table

    names = [name.strip() for name in types.split(",") if name.strip()]
    wanted = tuple(kind for kind in GGUF_TYPES if (kind in names if names else kind != "F32"))
    unknown = sorted(set(names) - set(GGUF_TYPES))
    if unknown:
        raise UsageError(
            f"`--types`: {', '.join(unknown)} is no type that can be written.", f"{', '.join(GGUF_TYPES)}."
        )
    result = measure(folder, wanted, plain=plain, speed=speed, quiet=quiet)
    typer.echo(json.dumps(result, indent=2) if as_json else table(result))
