"""`stillroom cache info|verify|seal`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stillroom.core.errors import CacheDamaged, UsageError

if TYPE_CHECKING:
    from stillroom.signals.cache.reader import Difference

Where = Annotated[
    str,
    typer.Argument(
        metavar="CACHE",
        help="A cache's folder, such as runs/quickstart/capture/cache, or its URL, such as s3://bucket/cache.",
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS|auto|local", help="Look at the shards on a Ray cluster, or on one that is started here."
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Workers of --ray; without it, one per core.")]
Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the group `cache`."""
    group = typer.Typer(help="Look into a teacher cache, and verify it.", no_args_is_help=True)
    group.command()(info)
    group.command()(verify)
    group.command()(seal)
    app.add_typer(group, name="cache")


def info(folder: Where, as_json: Json = False) -> None:
    """Say what a cache holds."""
    from stillroom.signals.cache.reader import TeacherCache

    cache = TeacherCache.open(folder)
    facts = {
        "sequences": len(cache),
        "positions": cache.positions,
        "shards": len(cache.manifest.shards),
        "bytes_per_position": round(cache.bytes_per_position, 3),
        **cache.identity.model_dump(mode="json"),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        for key, value in facts.items():
            typer.echo(f"{key:<20} {value}")


def verify(folder: Where, ray: Ray = None, workers: Workers = None, as_json: Json = False) -> None:
    """Check every shard; what is damaged is named and quarantined, and the next capture makes it again."""
    from stillroom.core.store import is_url, open_store
    from stillroom.signals.cache import parts
    from stillroom.signals.cache.manifest import Manifest
    from stillroom.signals.cache.reader import TeacherCache

    difference = _on_ray(folder, ray, workers, quiet=as_json)
    if is_url(folder):
        manifest, damages = parts.verify(open_store(folder), difference)
    else:
        damages = TeacherCache.verify_folder(folder, difference)
        manifest = Manifest.load(Path(folder))
    shards, positions = len(manifest.shards), sum(entry.positions for entry in manifest.shards)
    if as_json:
        report = {
            "whole": shards,
            "positions": positions,
            "damaged": [vars(damage) for damage in damages],
        }
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(f"{shards} shards with {positions:,} positions are whole.")
    if damages:
        words = "; ".join(f"{damage.shard} {damage.reason}" for damage in damages)
        raise CacheDamaged(
            f"{folder}: {len(damages)} damaged: {words}.",
            "They were moved to quarantine/; the next capture makes them again.",
        )


def _on_ray(folder: str, ray: str | None, workers: int | None, *, quiet: bool) -> Difference | None:
    """What workers of a Ray cluster found, where one is named."""
    if ray is None:
        if workers is not None:
            raise UsageError("--workers are those of a Ray cluster, and none is named.", "Give --ray ADDRESS, too.")
        return None
    from stillroom.cluster.ray_verify import difference_on_ray
    from stillroom.core.progress import Progress

    return difference_on_ray(folder, ray, workers, Progress(quiet))


def seal(where: Where, as_json: Json = False) -> None:
    """Make a cache of the units that other processes captured (`stillroom capture --part`): checks each and names it."""
    from stillroom.core.store import open_store
    from stillroom.signals.cache import parts

    sealed = parts.seal(open_store(where))
    typer.echo(parts.seal_json(sealed) if as_json else f"{parts.seal_words(sealed)}.")
    if sealed.damages:
        words = "; ".join(f"{damage.shard} {damage.reason}" for damage in sealed.damages)
        raise CacheDamaged(
            f"{where}: {len(sealed.damages)} units damaged: {words}.",
            "They were moved to quarantine/; give the same `stillroom capture --part` again, then seal.",
        )
