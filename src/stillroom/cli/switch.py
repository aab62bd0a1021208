"""`stillroom off`, `stillroom on`, `stillroom status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from stillroom.core.plain import shown

Json = Annotated[bool, typer.Option("--json", help="Answer as JSON on standard output.")]
FeatureName = Annotated[str | None, typer.Option("--feature", help="Only this feature.")]


def register(app: typer.Typer) -> None:
    """Add the commands of the switch."""
    app.command()(off)
    app.command()(on)
    app.command()(status)


def off(
    feature: FeatureName = None,
    purge: Annotated[bool, typer.Option(help="Remove sessions and caches too. This cannot be undone.")] = False,
    weights: Annotated[list[Path] | None, typer.Option(help="With --purge: remove these files or folders too.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="With --purge: do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Turn everything off: returns when every running engine has stopped."""
    from stillroom import switch
    from stillroom.core.errors import UsageError
    from stillroom.serving import purge as purging

    if feature is not None:
        given = {"--purge": purge, "--weights": weights, "--yes": yes, "--json": as_json}
        others = ", ".join(name for name, value in given.items() if value)
        if others:
            raise UsageError(
                f"--feature blocks one feature, without {others}. Nothing was turned off.",
                "Leave out --feature to turn everything off, or give it alone.",
            )
        switch.set_feature(feature, "blocked")
        typer.echo(f"{feature}: blocked")
        return
    receipt = switch.off()
    if not as_json:
        typer.echo(f"Off. {len(receipt.stopped)} engines stopped in {receipt.seconds * 1000:.0f} ms.")
        for stopped in receipt.stopped:
            how = "killed" if stopped.killed else "ended"
            name = shown(stopped.model, one_line=True)
            typer.echo(f"  {name} (process {stopped.pid}): {how} within {stopped.seconds * 1000:.0f} ms")
        for other in receipt.elsewhere:
            typer.echo(f"  elsewhere, stops by itself: {shown(other, one_line=True)}")
    removed: list[str] = []
    if purge:
        found = purging.listing(switch.Places.of_user(), weights or [])
        for item in found:
            typer.echo(f"  {item.path} ({item.kind}, {item.bytes:,} bytes)", err=True)
        if not found:
            typer.echo("Nothing to remove.", err=True)
        elif yes or typer.confirm("Remove all of it? This cannot be undone.", err=True):
            removed = purging.purge(switch.Places.of_user(), found)
            typer.echo(f"Removed: {len(removed)}.", err=True)
    if as_json:
        typer.echo(json.dumps({**receipt.as_dict(), "removed": removed}, indent=2))
    if weights and not purge:
        # Said last: a mistake in the options must not keep anything from being turned off.
        raise UsageError("Everything is off, but --weights removes nothing without --purge.", "Add --purge.")


def on(feature: FeatureName = None) -> None:
    """Turn it on again. Starts nothing."""
    from stillroom import switch

    if feature is not None:
        switch.set_feature(feature, "enabled")
        typer.echo(f"{feature}: {switch.status()['features'][feature]['state']}")
        return
    switch.on()
    typer.echo("On.")


def status(as_json: Json = False) -> None:
    """What the switch says, who holds it, and what runs."""
    from stillroom import switch

    said = {**switch.status(), "confinement": switch.confinement()}
    if as_json:
        typer.echo(json.dumps(said, indent=2))
        return
    typer.echo(f"The switch is {said['switch']}" + (f": {said['reason']}" if said["switch"] == "off" else "."))
    for name, feature in said["features"].items():
        held = " (held by the administrator)" if feature["held_by"] == "administrator" else ""
        typer.echo(f"  {name:<11} {feature['state']:<10} {feature['about']}{held}")
    for engine in said["engines"]:
        typer.echo(f"  running: {shown(engine['model'], one_line=True)} (process {engine['pid']})")
    for other in said["elsewhere"]:
        where, model = shown(other["machine"], one_line=True), shown(other["model"], one_line=True)
        typer.echo(f"  elsewhere: {other['kind']} {model} (process {other['pid']} of {where})")
    lacks = said["confinement"]["missing"]
    if not lacks:
        typer.echo("A model's process is confined by all that this version can take away.")
    else:
        typer.echo("A model's process is confined, but this system does not give all that could be taken away:")
        for line in lacks:
            typer.echo(f"  {line}.")
