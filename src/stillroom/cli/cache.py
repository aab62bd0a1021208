"""`stillroom cache info|verify|seal`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillroom.core.errors import CacheDamaged, UsageError

if TYPE_CHECKING:
    from stillroom.signals.cache.manifest import Manifest
    from stillroom.signals.cache.reader import Damage, Difference, TeacherCache

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
    """Say what a cache holds; with several teachers, also those of the others, below it."""
    from stillroom.signals.cache.reader import TeacherCache

    found = {name: _facts(TeacherCache.open(where)) for name, where in _caches(folder).items()}
    if as_json:
        below = {name: facts for name, facts in found.items() if name}
        typer.echo(json.dumps(found.get("", {}) | ({"below": below} if below else {}), indent=2))
        return
    for name, facts in found.items():
        if name:
            typer.echo(f"{name}:")
        for key, value in facts.items():
            typer.echo(f"{key:<20} {value}")


def _facts(cache: TeacherCache) -> dict[str, Any]:
    return {
        "sequences": len(cache),
        "positions": cache.positions,
        "shards": len(cache.manifest.shards),
        "bytes_per_position": round(cache.bytes_per_position, 3),
        **cache.identity.model_dump(mode="json"),
    }


def _caches(folder: str) -> dict[str, str]:
    """A cache, by the name "", and the caches of more teachers below its folder, by their own paths there."""
    from stillroom.core.store import is_url
    from stillroom.runs.stages import MORE_TEACHERS
    from stillroom.signals.cache.manifest import is_cache

    if is_url(folder):
        return {"": folder}
    base = Path(folder)
    below = {
        str(path.relative_to(base)): str(path) for path in sorted(base.glob(f"{MORE_TEACHERS}/*")) if is_cache(path)
    }
    # A recipe's own teacher that no source is learned from has no cache: what is no cache at all is refused when it is opened.
    return below if below and not is_cache(base) else {"": folder} | below


def verify(folder: Where, ray: Ray = None, workers: Workers = None, as_json: Json = False) -> None:
    """Check every shard; what is damaged is named and quarantined, and the next capture makes it again. With several teachers,
    the caches of the others, below it, are checked, too.
    """
    shards = positions = 0
    damages: list[dict[str, Any]] = []
    caches = _caches(folder)
    for name, where in caches.items():
        manifest, found = _verified(where, _on_ray(where, ray, workers, quiet=as_json))
        shards += len(manifest.shards)
        positions += sum(entry.positions for entry in manifest.shards)
        damages += [vars(damage) | ({"shard": f"{name}/{damage.shard}"} if name else {}) for damage in found]
    if as_json:
        typer.echo(json.dumps({"whole": shards, "positions": positions, "damaged": damages}, indent=2))
    else:
        in_all = f" in {len(caches)} caches" if len(caches) > 1 else ""
        typer.echo(f"{shards} shards with {positions:,} positions{in_all} are whole.")
    if damages:
        words = "; ".join(f"{damage['shard']} {damage['reason']}" for damage in damages)
        raise CacheDamaged(
            f"{folder}: {len(damages)} damaged: {words}.",
            "They were moved to quarantine/; the next capture makes them again.",
        )


def _verified(where: str, difference: Difference | None) -> tuple[Manifest, list[Damage]]:
    """What is whole of a cache, and what is not."""
    from stillroom.core.store import is_url, open_store
    from stillroom.signals.cache import parts
    from stillroom.signals.cache.manifest import Manifest
    from stillroom.signals.cache.reader import TeacherCache

    if is_url(where):
        return parts.verify(open_store(where), difference)
    damages = TeacherCache.verify_folder(where, difference)
    return Manifest.load(Path(where)), damages


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
